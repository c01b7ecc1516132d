"""What may take a word's place so that what was said is no longer true."""

from __future__ import annotations

import functools

from clipdef_jax.data import lexicon

# Of each group at most one is true of a thing. WordNet's siblings of such common words are often
# true at once, a man may be a friend and a church a temple, or of a sense that nobody draws.
_GROUPS = """
    bride groom
    king queen
    dog cat horse cow sheep goat pig elephant giraffe bear lion monkey rabbit mouse fox deer penguin
    bison camel zebra goat horse cow sheep
    flamingo duck owl parrot penguin rooster
    dragon dinosaur horse lion bear
    lizard beetle frog fish spider butterfly
    penguin duck owl eagle parrot rooster dog cat
    snake turtle frog fish shark whale octopus crab spider butterfly bee ant snail dog cat
    apple banana pear lemon cherry strawberry pineapple carrot tomato onion blueberry peach
    pizza cake sandwich burger doughnut cookie soup salad sausage
    coffee tea beer wine milk
    chocolate vanilla strawberry lemon
    car bus bicycle train airplane boat tractor rocket
    table sofa bed lamp mirror piano
    kitchen bedroom bathroom garage garden
    house castle bridge windmill lighthouse tent barn
    beach forest street desert stadium
    guitar piano violin trumpet drum flute harp banjo saxophone
    hat shirt skirt shoe glove tie
    computer phone television camera radio clock
    hammer saw scissors knife spoon brush key
    cup bowl bottle plate pan basket
    grape lemon cherry melon
    desk shelf sofa bed
    river lake mountain field city village
    wave cloud flame
    box bag basket bottle
    road river railway
    hill valley lake
    window door roof wall floor
    city village farm
    market church school hospital
    sunset noon midnight
    map painting mirror
    letter number drawing
    robot doll ball
    mustard sugar milk
    mouth nose ear
    ball kite surfboard umbrella
    tree flower cactus mushroom rock
    sun moon cloud rainbow
    circle square triangle arrow cross heart star
    hand foot nose ear mouth
    book flag map chair bell
    doctor farmer soldier dancer painter pilot firefighter nurse waiter
    wedding birthday
    notebook trophy umbrella basket lamp
    leaf feather shell candle
    branch roof bench
    red orange yellow green blue purple pink brown black white grey
    one two three four five six seven eight nine ten
    left right
    top bottom
    above below
    inside outside
    first second third last
    morning noon evening night
    spring summer autumn winter
    north south east west
    open closed
    full empty
    wet dry
    hot cold
    young old
    happy sad angry
    sits stands lies runs walks jumps flies swims sleeps dances
    sitting standing lying running walking jumping flying swimming sleeping dancing
    eats throws catches kicks pushes pulls
    eating throwing catching kicking pushing pulling
"""
# Words of no group, or of a group that says too little, and what may stand for them.
_INSTEAD = """
    man woman girl dog horse
    woman man boy dog horse
    boy girl woman dog horse
    girl boy man dog horse
    men women girls dogs horses
    women men boys dogs horses
    boys girls women dogs horses
    girls boys men dogs horses
    person dog horse
    people dogs horses
    child dog horse
    children dogs horses
    kid dog horse
    baby dog horse
    guy woman girl
    lady man boy
    animal car house
    bird dog cat fish
    insect dog cat fish
    mammal fish bird
    kitten dog horse duck
    puppy cat horse duck
    food car house
    fruit car house
    drink car house
    plant car dog
    bike car bus train
    motorcycle bus train airplane
    truck bicycle train airplane
    plane car bus train
    ship car bus train
    vehicle house dog
    building car dog
    church castle windmill bridge
    tower tent bridge
    gray red yellow green blue purple brown
    gold blue green purple
    golden blue green purple
    silver red green purple
    violet yellow green
    turquoise red yellow
    beige blue green
    teal red yellow
    lavender red brown
    maroon blue green
    big small tiny
    large small tiny
    huge small tiny
    giant small tiny
    small big huge
    little big huge
    tiny big huge
    tall short
    long short
    new old
    old young new
    day night
    wolf cat horse fish
    surfer dancer farmer doctor
    chef dancer farmer doctor
    glasses hat gloves
    city forest desert
    world city kitchen
    vegetable flower car
    berry carrot onion fish
    grain apple fish
    capsicum banana pear mushroom
    hamburger pizza cake soup
    donut pizza burger salad
    sake milk coffee tea
    sauce milk sugar
    chopsticks shoes hats
    pine rose cactus
    jacket shirt skirt dress
    scarf shirt shoe
    pepper banana pear mushroom
    coral cactus tree lamp
    egg carrot cup shoe
    chick rabbit fox fish
    chicken rabbit fox fish
    ladybug butterfly spider snail
    cockroach butterfly spider snail
    ledger umbrella lamp shoe
    card shoe lamp bottle
    handbag lamp hat bicycle
    purse lamp hat bicycle
    suitcase lamp hat bicycle
    briefcase lamp hat bicycle
    needle spoon bottle shoe
    medal lamp shoe bottle
    award lamp shoe bottle
    prize lamp shoe bottle
    leather glass paper
    wooden glass paper
    player doctor farmer soldier
    athlete doctor farmer soldier
    businessman farmer soldier dancer
    elderly young
    home bridge castle boat
    cheese chocolate fish
    landscape portrait
    stock newspaper
    motorboat bicycle train airplane
    minibus bicycle train airplane
    van bicycle train airplane
    town forest desert
    meadow city desert
    stage field beach
    room garden street
    laptop guitar book
    light dark
    raindrop snowflake feather
    temple castle bridge tent
    festival funeral
    dark bright
    bright dark
"""
# Media, parts and kinds: what is shown stays the same when they are exchanged.
_VAGUE = frozenset(
    """
    action application area art background banner bit bunch cartoon center centre clip clipart
    collection color colour corner couple design detail drawing edge emoji end example figure
    file frame friend front graphic group half icon idea illustration image item kind line logo look
    lot middle model name navy number object outline painting pair part pattern photo photograph pic
    picture piece pile place plan point portrait print rendering row scene series set sewing shape
    shot side sign silhouette sketch slice somebody someone something sort source spot sticker
    stuff style symbol template text theme thing time title type use variation variety vector
    version view way word
    """.split()  # noqa: SIM905
)
# Listed nouns that are plural.
_PLURALS = frozenset("scissors glasses gloves".split())  # noqa: SIM905
# Plurals of listed nouns that take more, or less, than an s.
_IRREGULAR = {
    "child": "children",
    "fish": "fish",
    "foot": "feet",
    "leaf": "leaves",
    "man": "men",
    "mouse": "mice",
    "sheep": "sheep",
    "shelf": "shelves",
    "tomato": "tomatoes",
    "woman": "women",
}
# Siblings that say so little, or what so nearly is said already, that the sentence may stay true.
_NEVER = frozenset(
    """
    animal anthropoid apparatus body champion companion coolie copy creature device dicot equipment
    face fan foreigner format hominid hominoid individual instrument life machine machinery mammal
    material matter monocot organism person plant simian slope structure substance swastika thing
    vertebrate visitor
    """.split()  # noqa: SIM905
)


def _tables() -> dict[str, tuple[str, ...]]:
    instead: dict[str, list[str]] = {}
    for line in _GROUPS.strip().splitlines():
        group = line.split()
        for word in group:
            instead.setdefault(word, []).extend(other for other in group if other != word)
    for line in _INSTEAD.strip().splitlines():
        word, *others = line.split()
        instead[word] = others
    return {word: tuple(dict.fromkeys(others)) for word, others in instead.items()}


_LISTED = _tables()
COLOURS = frozenset(
    """
    red orange yellow green blue purple pink brown black white grey gray gold golden silver violet
    turquoise beige teal lavender maroon
    """.split()  # noqa: SIM905
)


@functools.lru_cache(maxsize=1 << 14)
def contrasts(word: str, part_of_speech: str) -> tuple[str, ...]:
    """Returns words that can stand where `word` stands and are not true of the same thing.

    >>> contrasts("bicycle", "n")
    ('car', 'bus', 'train', 'airplane', 'boat', 'tractor', 'rocket')
    >>> contrasts("trombones", "n")
    ('bugles', 'clarions', 'cornets', 'flugelhorns', 'saxhorns')

    What is common is listed. Of other words, nouns are exchanged for siblings in WordNet's tree and
    adjectives for opposites, both with care: siblings in a sense that the word seldom has, kinds of
    it and its near synonyms are left out. WordNet's siblings of verbs are too often true at once.

    Args:
      word: in lower case.
      part_of_speech: "n" for a noun, "a" for an adjective, "" for any other word.

    Returns:
      Nothing for a word that is not known, or whose exchange would not change what is shown.
    """
    if word in _LISTED:
        return _LISTED[word]
    if len(word) < 3 or word in _VAGUE:
        return ()
    if part_of_speech == "a":
        return _opposites(word)
    if part_of_speech != "n" or lexicon.parts_of_speech(word)[:1] == "r":
        return ()
    for singular in lexicon.singulars(word):
        if singular in _VAGUE:
            return ()
        if singular in _LISTED:
            return tuple(_plural(other) for other in _LISTED[singular] if other not in _PLURALS)
    return _other_nouns(word)


def _plural(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    return word + "es" if word.endswith("s") else lexicon.plural(word)


def _other_nouns(word: str) -> tuple[str, ...]:
    near = {word, *lexicon.synonyms(word)}
    siblings = lexicon.siblings(word)
    own, plural = set(siblings), word.endswith("s")
    mutual, others = [], []
    for other in siblings:
        if other.endswith("s") != plural or other in near or not _telling(other):
            continue
        unfit = plural and other[:-1] in _IRREGULAR
        unfit |= " " in other or lexicon.parts_of_speech(other)[:1] != "n" or _akin(word, other)
        if unfit or not near.isdisjoint(lexicon.synonyms(other)):
            continue
        its = lexicon.siblings(other)
        shared = len(own.intersection(its))
        if word in its and shared > 1:
            mutual.append(other)
        elif shared > 3:
            others.append(other)
    return tuple(mutual or others)


def _telling(word: str) -> bool:
    return (_NEVER | _VAGUE).isdisjoint((word, *lexicon.singulars(word)))


def _opposites(word: str) -> tuple[str, ...]:
    # WordNet's own antonyms come first, and have few siblings in common with the word.
    own = set(lexicon.siblings(word))

    def opposed(other: str) -> bool:
        its = lexicon.siblings(other)
        return word in its[:2] and len(own.intersection(its)) < 2

    return tuple(filter(opposed, lexicon.siblings(word)[:2]))


def _akin(word: str, other: str) -> bool:
    """Returns whether one word ends like the other, as a warplane is an airplane."""
    word, other = word.removesuffix("s"), other.removesuffix("s")
    common = min(5, len(word), len(other))
    return word[-common:] == other[-common:]
