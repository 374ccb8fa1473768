"""The word lists the tasks share. Common English words, most of them one token in most models.

A list's order is part of the prompts: add at the end only, and know that the prompt sets, their
hashes and the toy tokenizer change with every word.
"""

from __future__ import annotations


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MALE = _list("""
James John Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Mark Paul
Andrew George Edward Jacob Stephen Samuel Frank Jack Henry Peter
""")

FEMALE = _list("""
Mary Elizabeth Sarah Emily Anna Maria Alice Jane Anne Patricia Jennifer Linda Barbara Susan
Jessica Karen Lisa Nancy Margaret Laura Emma Helen Rachel Kate
""")

NAMES = tuple(name for couple in zip(MALE, FEMALE, strict=False) for name in couple)
"""Both, in turn, so that a prefix of it is balanced."""

# All begin with a consonant, since they follow "a".
OBJECTS = _list("""
ball book bottle bag basket bell bowl box brush bucket button cake camera candle cap card chair
clock coat coin computer cookie cup desk dish doll dress drink drum fan feather flag flower fork
game gift glass guitar hammer hat helmet jacket jar jewel kettle key kite knife ladder lamp
letter lock magazine map mask medal mirror mug necklace needle newspaper notebook painting pan
paper pen pencil phone photo piano pie pillow pipe plant plate pot potato present puzzle
radio ribbon ring rope ruler sandwich scarf shell shirt shoe snack soap sock spoon stamp sticker
stone sweater sword table tape telephone tent ticket toy tray vase violin wallet watch wheel
whistle wire yacht blanket balloon hook bracelet calculator flute lemon pumpkin shovel pin rug saw
""")

PLACES = _list("""
store park school garden restaurant hospital office house station library museum beach market
church theater bank farm hotel kitchen airport cafe gym pool zoo studio factory harbor castle
bridge stadium bakery village mall lake palace temple university
""")

# Capitalised, and one token with and without a space before them: they start sentences.
THINGS = _list("""
Apple Ball Bank Bar Base Bell Board Boat Book Box Bridge Button Cable Camera Car Card Chain Chair
Cell Chart Clock Cloud Code Coin Computer Copy Cup Desk Disk Dog Door Dress Drive Engine
Field File Film Fire Fish Flag Food Frame Game Gate Gift Glass Gold Ground Hand Hat Head
Heart Hill Home Horse House Image Ink Iron Island Key King Lake Lamp Land Leaf Letter Light Line
Lock Map Metal Moon Mouse Note Oil Page Paper Park Pen Phone Pin Plane Plant Plate
Port Post Rain Ring River Road Rock Room Root Rose Salt Sand Screen Shell Ship Shop
Silver Sky Snow Song Square Star Stone Sun Table Tape Tea Ticket Tree Van Wall Watch Water Wheel
Wind Window Wire Wood
""")

NOUNS = _list("""
apple arm army bank band base bed bird boat body book border box bridge brother car card cat cell
chair child church city class cloud club code coffee color computer corner country court cup dark
desk dinner doctor dog door dream drink earth edge engine eye face family farm father field file
film finger fire fish floor flower food foot forest friend fruit game garden gate glass gold grass
ground group hair hall hand head heart heat hill home horse hotel house ice idea island job key
king kitchen lake land law leaf letter light line lunch machine map market meal message metal
milk mind mirror money moon mother mountain mouth movie music name night nose number ocean office
oil page paper park party path people phone picture piece place plan plane plant plate point pool
queen question rain ring river road rock room root rose sand school sea seat sheet ship shop
shoulder sky sleep smoke snow song sound space spring star station step stone storm street sugar
summer sun table tea teacher test town train tree truth unit valley village voice wall war water
wave wheel wind window winter wood word world yard year
""")

# Singular and plural: things first, people after them.
COUNTABLE: tuple[tuple[str, str], ...] = tuple(
    (one, many)
    for one, _, many in (
        pair.partition("/")
        for pair in _list("""
key/keys book/books car/cars boat/boats tree/trees house/houses table/tables chair/chairs
door/doors window/windows picture/pictures letter/letters flower/flowers river/rivers
bridge/bridges road/roads tower/towers wall/walls building/buildings garden/gardens shop/shops
farm/farms school/schools ship/ships train/trains truck/trucks lamp/lamps clock/clocks bottle/bottles
box/boxes machine/machines computer/computers phone/phones photo/photos map/maps hotel/hotels
statue/statues cabinet/cabinets ring/rings stone/stones star/stars field/fields hill/hills
mountain/mountains lake/lakes island/islands bird/birds dog/dogs cat/cats horse/horses cow/cows
teacher/teachers doctor/doctors student/students farmer/farmers singer/singers driver/drivers
writer/writers lawyer/lawyers nurse/nurses player/players pilot/pilots soldier/soldiers
friend/friends neighbor/neighbors girl/girls boy/boys king/kings artist/artists actor/actors
""")
    )
)

QUALITIES = _list("""
old new big small red blue green black white young tall little large dark bright clean quiet
famous beautiful strange heavy nice pretty strong modern simple fresh rich brown grey
""")

EVENTS = _list("""
war battle siege conflict campaign revolution rebellion empire reign rule expedition voyage journey
project program strike dispute trial treaty alliance crisis famine drought plague epidemic
mission tour festival tournament contest search construction renovation experiment survey study
investigation negotiation debate ceremony competition partnership marriage friendship
government dynasty era period movement trade exploration expansion migration boom recession depression
peace truce blockade invasion revolt raid training course exhibition operation
""")

PRAISED = _list("""
cook dancer singer teacher writer driver swimmer painter player runner doctor actor friend
student leader artist reader speaker worker farmer listener baker hunter lawyer
musician pilot poet scientist soldier nurse coach boss judge partner neighbor
""")

TRAITS = _list("""
kind clever funny brave strong smart quiet friendly polite honest gentle calm busy happy
tired young rich famous talented creative careful patient hungry serious shy proud generous
""")

GOOD = _list("""
wonderful fantastic excellent brilliant beautiful superb lovely delightful marvelous incredible
outstanding magnificent charming enjoyable remarkable spectacular impressive terrific fabulous
exceptional extraordinary fun funny inspiring splendid stunning clever fascinating exciting
powerful memorable touching refreshing engaging entertaining captivating uplifting creative
interesting thrilling sweet elegant gorgeous pleasant smart unique fresh witty moving nice
""")

BAD = _list("""
dreadful boring dull poor nasty disappointing ugly stupid annoying mediocre ridiculous miserable
pathetic tedious unpleasant worthless painful lousy foolish depressing horrid offensive pointless
useless frustrating disturbing rotten lame sad hateful tragic troubling crude sloppy gloomy
bleak sick grim shameful vile toxic cruel wrong weird insulting appalling sickening
""")

LIKED = _list("loved liked enjoyed adored admired appreciated praised recommended treasured")
DISLIKED = _list("hated disliked despised detested loathed")

WORKS = _list("""
movie film show book song play album game story episode novel series concert drama opera comedy
documentary performance video exhibition
""")

DEGREES = _list("so really very truly quite simply")

BEST = ("great", "amazing", "awesome", "good", "perfect")
WORST = ("terrible", "awful", "bad", "horrible", "disgusting")

GATHERINGS = _list("""
parties concerts dances festivals weddings games races picnics dinners meetings shows celebrations
events matches
""")

OCCASIONS = _list("""
party concert dance festival wedding ball feast celebration picnic dinner banquet gathering show
carnival
""")

GLAD = ("happy", "excited", "glad")
SORRY = ("sad", "nervous", "unhappy", "worried")

MONTHS = _list("""
January February March April May June July August September October November December
""")
NUMERALS = tuple(str(n) for n in range(1, 13))
NUMBER_WORDS = _list("one two three four five six seven eight nine ten eleven twelve")

FUNCTIONS = _list("""
port load send read write open close build parse update create find check move format print render
merge start stop split filter join test
""")

ALL = tuple(dict.fromkeys(OBJECTS + PLACES + NOUNS + QUALITIES + EVENTS + PRAISED + TRAITS + NAMES))
"""Words that random answers are drawn from."""
