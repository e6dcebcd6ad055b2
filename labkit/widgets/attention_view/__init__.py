"""AttentionView: every head at a glance."""

from labkit.widgets.attention_view.view import AttentionView as AttentionView
