"""Words and numbers that stand in pictures. Some are never seen in training, so that reading them can be told apart."""

import zlib
from random import Random
from string import ascii_uppercase

_LISTED = """
able acid aged also area army away baby back ball band bank base bath bear beat been beer bell belt best bike bill bird
blue boat body bone book born both bowl bulk burn bush busy cake call calm camp card care case cash cast cell chat chip
city club coal coat code cold come cook cool copy core corn cost crew crop cup cut dark data date dawn days deal deep
desk dial diet dish door down draw dream dress drink drive drop dry dust duty each ear earn ease east easy edge egg
else end even ever exit eye face fact fair fall farm fast fear feed feel file fill film find fine fire firm fish five
flat floor flow fly food foot form four free fresh from front fruit fuel full fund gain game gate gift girl give glad
glass goal gold golf good grass gray green grow hair half hall hand happy hard hat have head hear heart heat help here
hero high hill hold hole home hope horse host hotel hour house huge ice idea inch iron jazz join joke juice jump june
jury just keep kick kind king kiss knee know lady lake lamp land large last late lead leaf left lemon level life light
like line lion list live local lock long look lord lose love luck lunch magic mail main make map march market mask match
meal meat menu mile milk mind mine mint miss model money month moon more most motor mouth movie much music name near
neck need never news next nice night nine noise north nose note novel ocean offer oil old once only open orange order
other oven over own pack page paint pair palm paper park part party past path peace pen phone photo piano pick pilot
pink pipe place plan plant play plus point pool poor port post pound power price print pull pure push queen quick quiet
race radio rain rate read real red rest rice rich ride right ring rise river road rock role roof room root rose round
rule run safe sail salt same sand save school sea seat seed sell send seven shape sharp ship shirt shoe shop short show
sign silk silver sing sister site six size skin sky sleep slow small smart smile smoke snow soap soft soil song soon
sound soup south space speed spoon sport spring stage star start steam steel step stone stop store storm story street
sugar suit summer sun sweet swim table tail take talk tall tank task taste taxi tea team tell ten tent test text thank
thin three ticket tide time tiny title today tool tooth top tour tower town toy track trade train tree trip truck true
tune turn twin two type under union unit upon use valley value van very video view visit voice vote wait walk wall warm
wash watch water wave way wear week well west wheel white wide wife wild wind wine wing winter wire wise wolf wood word
work world yard year yellow young zero zone zoo
"""

WORDS = tuple(word.upper() for word in _LISTED.split())


def is_unseen(text: str) -> bool:
    """Whether a word or number is kept for testing: one in ten, by a checksum of its letters."""
    return zlib.crc32(text.encode()) % 10 == 0


def pick(chance: Random, split: str) -> str:
    """A word, or now and then a number of one to four digits; in "train" none that is kept for testing.

    In "train" every third is no word but letters by chance, so that letters are learned more than words.
    """
    while True:
        if chance.random() < 0.25:
            text = str(chance.randrange(10 ** chance.randint(1, 4)))
        elif split == "train" and chance.random() < 0.45:
            text = "".join(chance.choices(ascii_uppercase, k=chance.randint(3, 6)))
        else:
            text = chance.choice(WORDS)
        if split == "test" or not is_unseen(text):
            return text
