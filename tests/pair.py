"""The pair of prompts that most tests use: who gives, and who gets (Wang et al. 2022)."""

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
PAIR = (CLEAN, CORRUPT, " Mary", " John")
LONG = (
    "When Mary and John went to the store, {} looked at the shelves for a while and thought about what they would need "
    "for the evening, because their friends were coming over for dinner and nothing was ready yet. In the end, {} gave "
    "a drink to"
)
