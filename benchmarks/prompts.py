"""The pairs that every side patches: the same words, the same tokens, the same answer and foil."""

ANSWER, FOIL = " Mary", " John"
_LONG = (
    "When Mary and John went to the store, {} looked at the shelves for a while and thought about what they would need "
    "for the evening, because their friends were coming over for dinner and nothing was ready yet. In the end, {} gave "
    "a drink to"
)
PAIRS = {
    "short": tuple(f"When Mary and John went to the store, {name} gave a drink to" for name in ("John", "Mary")),
    "long": tuple(_LONG.format(name, "John") for name in ("John", "Mary")),
}
