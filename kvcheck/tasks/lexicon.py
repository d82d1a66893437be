"""The words of the offline generators. The embedded tokenizer holds each of them as one token.

Lists are ordered and frozen: changing one changes the samples, so it needs a new task version.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    words = tuple(text.split())
    if len(set(words)) != len(words):
        raise ValueError(f"a word is listed twice: {sorted({word for word in words if words.count(word) > 1})}")
    return words


ANIMALS = _words(
    "otter badger falcon heron lynx marmot newt osprey puffin rabbit salmon tapir urchin viper walrus yak zebra beaver "
    "cobra dingo egret ferret gecko hyena ibis jackal koala lemur mole narwhal ocelot panda quail raven seal toad "
    "vole weasel bison camel"
)
PLANTS = _words(
    "maple birch cedar daisy elder fern ginger hazel iris jasmine kelp lilac moss nettle oak poppy reed sage thyme "
    "tulip violet willow yarrow clover aspen basil cactus dahlia fig grape heather ivy juniper lotus mint olive pine "
    "rose spruce walnut"
)
TOOLS = _words(
    "lantern anvil bellows chisel drill easel funnel gauge hammer inkwell jigsaw kettle ladder mallet needle oar "
    "pliers quill rasp saw tongs vise wrench axe bucket compass file hinge lathe mirror nail pulley rope shovel "
    "trowel valve wheel zipper clamp lever"
)
FOODS = _words(
    "bread cheese donut pretzel honey jam lemon mango noodle omelet pasta radish soup toast waffle yogurt almond "
    "bagel cookie dumpling garlic hummus icing jelly lentil muffin nougat onion pickle quinoa rice sorbet taco "
    "vanilla pudding butter pepper raisin sugar turnip"
)
OBJECTS = ANIMALS + PLANTS + TOOLS + FOODS
CATEGORIES = (ANIMALS, PLANTS, TOOLS, FOODS)

FIRST_NAMES = _words(
    "Alice Boris Clara David Elena Felix Greta Hugo Irene Jonas Karla Leon Marta Nils Olga Pavel Rosa Simon Tessa "
    "Victor Wanda Xavier Yara Zeno Anton Bella Carlo Diana Emil Fiona Gustav Helga Ivan Judith Klaus Laura Milan Nora "
    "Oscar Petra"
)
LAST_NAMES = _words(
    "Abbott Barnes Castro Dalton Ellis Foster Garcia Hansen Ibsen Jensen Keller Larsen Moreau Nolan Olsen Perez Quinn "
    "Rossi Sanders Torres Ulrich Vargas Weber Young Ziegler Almeida Becker Conti Duran Engel Fischer Gomez Huber "
    "Janssen Kovacs Lopez Meyer Novak Petrov Silva"
)
CITIES = _words(
    "Paris Rome Oslo Lima Tokyo Madrid Vienna Prague Warsaw Dublin Lisbon Athens Havana Quito Seoul Hanoi Mumbai Tunis "
    "Nairobi Accra Geneva Milano Zurich Turin Porto Seville Leipzig Ghent Utrecht Malmo Tampere Riga Vilnius Kyiv "
    "Sofia Izmir Haifa Osaka Perth Toronto"
)
JOBS = _words(
    "baker carpenter dentist editor farmer gardener hunter inspector jeweler lawyer mason nurse optician painter "
    "reporter sailor tailor waiter barber chemist doctor engineer florist guard judge locksmith miner pilot potter "
    "singer"
)
FIRMS = _words(
    "Acme Borealis Corvus Delphi Equinox Fulcrum Globex Helios Initech Juno Krypton Lumen Monarch Nimbus Orion"
)
LABELS = _words("alpha beta gamma delta kappa lambda sigma omega theta zeta")
COLORS = _words("red blue green yellow purple orange brown black white gray pink silver golden amber crimson indigo")
ORDINALS = _words("first second third")
LETTERS = ("A", "B", "C", "D")

NOUNS = _words(
    "river mountain window garden street bridge market station harbor valley forest meadow tower castle island "
    "road field village kitchen corner cloud storm winter summer evening morning shadow music letter story"
)
VERBS = _words(
    "keeps follows crosses reaches covers leaves passes holds turns opens meets hides carries watches finds loses "
    "needs likes misses shows"
)
ADJECTIVES = _words(
    "quiet narrow distant gentle heavy bright ancient hollow frozen gloomy humble lively modest noble patient rapid "
    "silent tender vivid wooden"
)
ADVERBS = _words("slowly often rarely always never again today softly early late")
PADS = _words("so then still now here there perhaps indeed")
NOISE = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)

ZH_SURNAMES = tuple("王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗")
ZH_GIVEN = tuple("伟芳娜敏静丽强磊军洋勇艳杰娟涛明超秀霞平")
ZH_CITIES = _words(
    "北京 上海 广州 深圳 杭州 南京 成都 武汉 西安 苏州 天津 重庆 长沙 青岛 大连 厦门 昆明 沈阳 济南 合肥"
)
ZH_NOUNS = _words("天空 河流 山谷 花园 街道 森林 村庄 大海 月亮 星星 早晨 夜晚 春天 秋天 故事 音乐")
ZH_ADJECTIVES = _words("美丽 安静 遥远 明亮 古老 温暖 寒冷 宽阔")

TEMPLATE = _words(
    "Read the text and answer. Question: Answer: What is value of Which string starts with ends in put copy to from "
    "Where does live lives moved settled works as trained for They opened city firm an Find Repeat function "
    "described type group reading largest smallest Summary report Complete call code The a ( ) : ; = , . ? ! - + * # "
    "def return import then adds scales plus times by Path end Document Options: are only number line next who it on "
    "at be has have this that one two each most names hold variable variables find Numbers Groups Cases Notes Files "
    "owns adopted did do which job kind pet adopt what was we go back Here There grass sky sun green. blue. yellow. "
    "go. again. is: use Text Variables functions picked went worked work Names firms"
)
ZH_TEMPLATE = _words("住在 搬到 定居 哪里 问题 回答 很 的 在 是 。 ？ ， ： 请 阅读 下面 文字")
