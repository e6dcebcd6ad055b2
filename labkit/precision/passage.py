"""A text to measure on where none is given: plain prose of labkit's own, so that everybody has the same one."""

_TEXT = """
The harbour wakes before the town does. At four in the morning the first boats come back, and the women who sort the
fish are already standing under the lamps with their sleeves rolled up. Nobody talks much. The crates are heavy, the
stones are wet, and the price of everything depends on being early.

Anna had worked there for eleven years. She knew which of the fishermen would cheat her on a cold day and which of
them would not, and she knew that the two groups were not always the same people. Her daughter Lena was studying
chemistry in the city and came home once a month with a bag full of washing and questions. "Why do you still do it
by hand?" she asked. "There are machines that can tell a cod from a haddock in a tenth of a second."

"So can I," said Anna, "and I do not need to be plugged in."

In the summer of that year the council decided to build a market hall with a roof, a cold store and a café on the
upper floor. It would cost four million, of which the state would pay half. Three people voted against it: the owner
of the old café, a man who voted against everything, and the harbour master, who had read the plans. The cold store,
he explained, would stand exactly where the boats had to turn. If the wind came from the west, and it came from the
west on two hundred days a year, there would be no room left to turn in. The engineer answered that the calculation
had been checked twice. The harbour master answered that the wind had not been told.

They built it anyway. In October a trawler took away the corner of the roof, and in November the insurance company
sent a letter of nine pages whose only clear sentence was the last one. By the spring the cold store had been moved
to the other side of the street, where it should have been from the beginning, and the café had become the best
place in town to watch the boats come in. Anna went up there once, paid for a coffee that was twice as expensive as
it should have been, looked down at the lamps and the crates, and said that from above it all seemed to be very
easy.
"""
PASSAGE = "\n\n".join(" ".join(paragraph.split()) for paragraph in _TEXT.split("\n\n"))
