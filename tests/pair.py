"""The pair of prompts that most tests use: who gives, and who gets (Wang et al. 2022)."""

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
