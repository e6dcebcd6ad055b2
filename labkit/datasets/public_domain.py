"""Openings of well-known works that are in the public domain, each with the same thing said in other words.

All authors died more than a hundred years ago and every work was published before 1900, so their copyright is over in
the European Union (70 years after the author's death), in the United States (published before 1931) and in other
countries that count from the author's death. The words after `continuation` are of the work, in its common spelling and
without line breaks; those of `paraphrase` are labkit's own: the same content, as likely by sense and grammar, which
nobody can know by heart.
"""

from __future__ import annotations

from typing import NamedTuple


class Opening(NamedTuple):
    """The beginning of a work: `start` is given, `continuation` is how it goes on, `paraphrase` how it does not."""

    author: str
    died: int
    title: str
    year: int
    start: str
    continuation: str
    paraphrase: str

    @property
    def why(self) -> str:
        """Why it is in the public domain."""
        return f"published in {self.year}; {self.author} died in {self.died}"


OPENINGS = (
    Opening(
        "Jane Austen", 1817, "Pride and Prejudice", 1813,
        "It is a truth universally acknowledged, that a single man",
        " in possession of a good fortune, must be in want of a wife. However little known the feelings or views of "
        "such a man may be",
        " who has plenty of money will need to find somebody to marry. No matter how little people know of what he "
        "himself thinks or",
    ),
    Opening(
        "Charles Dickens", 1870, "A Tale of Two Cities", 1859,
        "It was the best of times, it was the worst of times,",
        " it was the age of wisdom, it was the age of foolishness, it was the epoch of belief, it was the epoch of "
        "incredulity,",
        " people were wiser than ever, people were sillier than ever, many believed in all things, many believed in "
        "nothing,",
    ),
    Opening(
        "Herman Melville", 1891, "Moby-Dick", 1851,
        "Call me Ishmael. Some years ago",
        "—never mind how long precisely—having little or no money in my purse, and nothing particular to interest me "
        "on shore, I thought I would sail about a little",
        "—the exact number does not matter—when my wallet was almost empty, and the land had become rather dull for "
        "me, I decided to go on a ship for a while",
    ),
    Opening(
        "Lewis Carroll", 1898, "Alice's Adventures in Wonderland", 1865,
        "Alice was beginning to get very tired of sitting by her sister on the bank,",
        " and of having nothing to do: once or twice she had peeped into the book her sister was reading, but it had "
        "no pictures or conversations in it,",
        " and there was nothing that she could play: now and then she had looked at the pages of the novel beside "
        "her, but nobody talked and nothing was drawn there,",
    ),
    Opening(
        "Lewis Carroll", 1898, "Through the Looking-Glass", 1871,
        "'Twas brillig, and the slithy toves",
        " Did gyre and gimble in the wabe: All mimsy were the borogoves, And the mome raths outgrabe.",
        " Went round and round upon the grass: The little birds looked very sad, And all the pigs cried out.",
    ),
    Opening(
        "Abraham Lincoln", 1865, "The Gettysburg Address", 1863,
        "Four score and seven years ago our fathers brought forth",
        " on this continent, a new nation, conceived in Liberty, and dedicated to the proposition that all men are "
        "created equal.",
        " in this part of the world, a young country, born out of freedom, and given to the idea that nobody is worth "
        "more than another.",
    ),
    Opening(
        "Thomas Jefferson", 1826, "The Declaration of Independence", 1776,
        "When in the Course of human events, it becomes necessary for one people",
        " to dissolve the political bands which have connected them with another, and to assume among the powers of "
        "the earth, the separate and equal station",
        " to end the union of states that has tied it to some other one, and to take up among the countries of the "
        "world, a free and equal position",
    ),
    Opening(
        "Gouverneur Morris", 1816, "The Constitution of the United States", 1787,
        "We the People of the United States, in Order to form",
        " a more perfect Union, establish Justice, insure domestic Tranquility, provide for the common defence, "
        "promote the general Welfare,",
        " a better league of states, set up fair courts, keep the peace at home, stand together against attacks, help "
        "everyone to live well,",
    ),
    Opening(
        "William Shakespeare", 1616, "Hamlet", 1604,
        "To be, or not to be, that is the question: Whether 'tis nobler in the mind",
        " to suffer The slings and arrows of outrageous fortune, Or to take arms against a sea of troubles And by "
        "opposing end them.",
        " to bear The blows and insults of an unkind destiny, Or to stand up against so many sorrows And make them "
        "stop by fighting.",
    ),
    Opening(
        "William Shakespeare", 1616, "Sonnet 18", 1609,
        "Shall I compare thee to a summer's day?",
        " Thou art more lovely and more temperate: Rough winds do shake the darling buds of May, And summer's lease "
        "hath all too short a date:",
        " Thou art more gentle and more beautiful: Cold storms will harm the tender flowers of spring, And August days "
        "are over all too soon:",
    ),
    Opening(
        "Edgar Allan Poe", 1849, "The Raven", 1845,
        "Once upon a midnight dreary, while I pondered, weak and weary,",
        " Over many a quaint and curious volume of forgotten lore— While I nodded, nearly napping, suddenly there came "
        "a tapping,",
        " On the odd and ancient pages of some books that no one reads— As I almost fell asleep there, all at once I "
        "heard a knocking,",
    ),
    Opening(
        "Clement Clarke Moore", 1863, "A Visit from St. Nicholas", 1823,
        "'Twas the night before Christmas, when all through the house",
        " Not a creature was stirring, not even a mouse; The stockings were hung by the chimney with care,",
        " No one was awake and no animal moved; The socks had been put near the fireplace with love,",
    ),
    Opening(
        "William Blake", 1827, "The Tyger", 1794,
        "Tyger Tyger, burning bright,",
        " In the forests of the night; What immortal hand or eye, Could frame thy fearful symmetry?",
        " Under trees without a light; Which eternal mind or arm, Did make thy form of fright and charm?",
    ),
    Opening(
        "William Wordsworth", 1850, "I Wandered Lonely as a Cloud", 1815,
        "I wandered lonely as a cloud That floats on high o'er vales and hills,",
        " When all at once I saw a crowd, A host, of golden daffodils; Beside the lake, beneath the trees,",
        " Until I came upon a field, A sea, of yellow flowers there; Along the shore, below the leaves,",
    ),
    Opening(
        "Charlotte Brontë", 1855, "Jane Eyre", 1847,
        "There was no possibility of taking a walk that day. We had been wandering, indeed,",
        " in the leafless shrubbery an hour in the morning; but since dinner (Mrs. Reed, when there was no company, "
        "dined early)",
        " among the bare bushes for some time before noon; but after our meal (the lady of the house, without guests, "
        "ate soon)",
    ),
    Opening(
        "Mark Twain", 1910, "Adventures of Huckleberry Finn", 1884,
        "You don't know about me without you have read a book by the name of",
        " The Adventures of Tom Sawyer; but that ain't no matter. That book was made by Mr. Mark Twain, and he told "
        "the truth, mainly.",
        " a certain boy who has a river near his house; but you needn't mind. It was some writer I met that made it "
        "up, and he was honest, often.",
    ),
)  # fmt: skip
