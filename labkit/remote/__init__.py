"""A model that is elsewhere: what goes over the wire, what can be asked, and the model that a student holds."""
