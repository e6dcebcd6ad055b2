"""A small set of minimal pairs, labkit's own: a first look where no published set is at hand.

Each line is a sentence with a choice in brackets, the acceptable form first. The phenomena are those of BLiMP (Warstadt
et al. 2020); the sentences are not. Eight per phenomenon are enough to see a model fail, not to compare two that are
alike.
"""

from __future__ import annotations

import re

_PAIRS = {
    "subject-verb agreement": """
        The keys to the old cabinet [are|is] on the kitchen table.
        The painting above the two chairs [was|were] stolen last night.
        My brother's friends [live|lives] near the station.
        The teacher that the students like [has|have] a new bicycle.
        The books on the lowest shelf [belong|belongs] to the library.
        Every child in these villages [knows|know] the song.
        The smell of fresh flowers [fills|fill] the whole house.
        The windows of the blue car [were|was] open all day.
    """,
    "anaphor agreement": """
        My sister taught [herself|himself] to play the violin.
        The boys hurt [themselves|himself] while climbing the fence.
        Her uncle blamed [himself|herself] for the accident.
        The queen saw [herself|himself] in the mirror.
        The doctors reminded [themselves|itself] to rest more often.
        That actress does not trust [herself|himself] any more.
        The king's sons had prepared [themselves|himself] for the journey.
        My grandfather always laughed at [himself|herself].
    """,
    "determiner-noun agreement": """
        She bought these [apples|apple] at the market.
        He cannot lift this [box|boxes] without help.
        Many [people|person] were waiting outside the bank.
        I have read each [letter|letters] twice.
        Those [children|child] sing in the choir.
        We planted several [trees|tree] behind the school.
        That [woman|women] repairs old radios.
        They looked after both [horses|horse] during the winter.
    """,
    "irregular forms": """
        The bird has [flown|flew] over the lake.
        She [wrote|written] a long letter to her mother.
        They had [eaten|ate] all the bread before noon.
        The [broken|broke] window let in the rain.
        He [took|taken] the last train home.
        The children have [drunk|drank] their milk.
        My cousin [began|begun] to laugh.
        The old coat was [torn|tore] at the sleeve.
    """,
    "negative polarity": """
        [Nobody|Somebody] in the office has ever met the owner.
        The farmer has [not|now] sold any of his sheep.
        [No|The] student who failed has any reason to complain.
        She [never|often] said anything about the money.
        [Few|Many] guests have ever complained about the food.
        I [doubt|know] that he has ever been to Norway.
        He left [without|with] telling anyone at all.
        They [hardly|usually] ever go to the theatre.
    """,
    "argument structure": """
        The old man [slept|put] in the garden.
        The waiter [brought|arrived] the soup to the table.
        The ice [melted|made] quickly in the sun.
        She [gave|said] her neighbour a cake.
        The thief [vanished|carried] before dawn.
        We [discussed|talked] the plan for an hour.
        The children [laughed|placed] when the clown fell.
        He [told|explained] me the whole story.
    """,
    "filler-gap dependencies": """
        I know [what|that] she bought at the market yesterday and ate at once.
        This is the boy who we saw [at the park|him at the park].
        Who did the nurse help [after lunch|her after lunch]?
        She asked which song we sang [first|it first].
        The letter that he wrote [was|it was] never sent.
        What did you put [on the shelf|it on the shelf]?
        The man whose dog barked [came|he came] to apologise.
        Tell me which road you took [to the coast|it to the coast].
    """,
    "word order": """
        She has [never seen|seen never] the ocean.
        I wonder why [he left|did he leave] so early.
        They will [probably arrive|arrive probably they] after dark.
        He gave the book [to me|me to] on Sunday.
        The very [tall man|man tall] bought a hat.
        We do not know where [the key is|is the key] now.
        She speaks [English very well|very well English] these days.
        There [is a cat|a cat is] under the table.
    """,
}


def _filled(line: str) -> tuple[str, str]:
    """Both sentences of a line."""
    good, bad = (re.sub(r"\[(.*?)\|(.*?)\]", part, line) for part in (r"\1", r"\2"))
    return good, bad


MINI = tuple(
    (*_filled(line.strip()), phenomenon) for phenomenon, text in _PAIRS.items() for line in text.strip().splitlines()
)
"""(acceptable sentence, unacceptable sentence, phenomenon)."""
