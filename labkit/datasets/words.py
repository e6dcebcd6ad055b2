"""The words that the task templates are filled with. Those that a tokenizer splits are left out when pairs are made."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Mary John Tom James Anna Paul Sarah Peter David Alice Mark Laura Robert Emma Michael Lisa Daniel Jane Kevin Julia "
    "Simon Rachel Adam Helen George Susan Martin Kate Andrew Maria Richard Emily Thomas Karen Steven Linda Frank Nancy "
    "Scott Diana Brian Amy Eric Ruth Henry Grace Jack Sam Charles Elizabeth William Jennifer"
)
PLACES = _words(
    "kitchen garden station library school market park hospital office museum restaurant church theater airport beach "
    "factory farm hotel store bank house river village harbor bridge"
)
THINGS = _words(
    "book letter key ring ball cup drink map bag coat phone camera basket ticket flower box knife lamp hat guitar "
    "newspaper bottle chair pencil sandwich"
)
EVENTS = _words(
    "war siege reign voyage strike project study festival expedition construction dispute trial famine journey "
    "campaign rebellion drought debate"
)
CAPITALS = (
    ("France", "Paris"), ("Germany", "Berlin"), ("Italy", "Rome"), ("Spain", "Madrid"), ("England", "London"),
    ("Russia", "Moscow"), ("China", "Beijing"), ("Japan", "Tokyo"), ("Egypt", "Cairo"), ("Greece", "Athens"),
    ("Ireland", "Dublin"), ("Austria", "Vienna"), ("Portugal", "Lisbon"), ("Turkey", "Ankara"), ("Iran", "Tehran"),
    ("Iraq", "Baghdad"), ("India", "Delhi"), ("Thailand", "Bangkok"), ("Cuba", "Havana"), ("Canada", "Ottawa"),
    ("Poland", "Warsaw"), ("Sweden", "Stockholm"), ("Norway", "Oslo"), ("Denmark", "Copenhagen"), ("Peru", "Lima"),
    ("Hungary", "Budapest"), ("Kenya", "Nairobi"), ("Israel", "Jerusalem"), ("Scotland", "Edinburgh"),
    ("Belgium", "Brussels"), ("Finland", "Helsinki"), ("Ukraine", "Kiev"), ("Syria", "Damascus"), ("Korea", "Seoul"),
)  # fmt: skip
LANGUAGES = (
    ("France", "French"), ("Germany", "German"), ("Italy", "Italian"), ("Spain", "Spanish"), ("England", "English"),
    ("Russia", "Russian"), ("China", "Chinese"), ("Japan", "Japanese"), ("Greece", "Greek"), ("Portugal", "Portuguese"),
    ("Turkey", "Turkish"), ("Poland", "Polish"), ("Sweden", "Swedish"), ("Norway", "Norwegian"), ("Denmark", "Danish"),
    ("Hungary", "Hungarian"), ("Israel", "Hebrew"), ("Egypt", "Arabic"), ("Mexico", "Spanish"),
    ("Brazil", "Portuguese"), ("Austria", "German"), ("Korea", "Korean"), ("Iran", "Persian"), ("Thailand", "Thai"),
    ("Finland", "Finnish"),
)  # fmt: skip
CALLED_SHE = _words(
    "nurse secretary maid housekeeper librarian dancer teacher nanny midwife ballerina receptionist waitress actress "
    "hostess bride nun mother queen"
)
CALLED_HE = _words(
    "carpenter plumber mechanic soldier pilot farmer sailor butcher captain guard driver electrician miner priest "
    "engineer janitor sheriff boss"
)
NOUNS = (
    ("key", "keys"), ("book", "books"), ("picture", "pictures"), ("dog", "dogs"), ("horse", "horses"),
    ("tree", "trees"), ("car", "cars"), ("house", "houses"), ("child", "children"), ("woman", "women"),
    ("man", "men"), ("bird", "birds"), ("chair", "chairs"), ("table", "tables"), ("boat", "boats"),
    ("letter", "letters"), ("student", "students"),
    ("flower", "flowers"), ("window", "windows"), ("door", "doors"), ("bridge", "bridges"), ("cat", "cats"),
)  # fmt: skip
VARIABLES = _words(
    "read build load parse merge send filter update create order image table signal record message report stream path "
    "user color frame region market weight"
)
PARAMETERS = _words(
    "size name path text value key index count mode type data level date label width height start end limit rate state "
    "color source target file line node list group code"
)
PLAIN = (
    "The old lighthouse keeper painted his door every spring, although nobody came to see it. Rain fell on the hills "
    "for three days and filled the wells. A baker in the next town sold bread that tasted of salt and smoke. In winter "
    "the ferry ran twice a week, and children counted the gulls on its railing. Some letters took a month to arrive; "
    "others were lost, and no one asked for them. When the road was finished, the maps had to be drawn again."
)
"""Text on no particular topic: the source of unrelated prompts for controls when no pairs are given."""
