"""The vocabulary of the captions: colours, shapes, what a piece of art is called."""

COLORS = {
    "red": (222, 42, 42),
    "green": (44, 160, 68),
    "blue": (42, 98, 216),
    "yellow": (250, 214, 52),
    "orange": (245, 140, 36),
    "purple": (132, 64, 190),
    "pink": (248, 150, 190),
    "black": (22, 22, 24),
    "gray": (140, 142, 146),
    "brown": (126, 82, 50),
    "cyan": (60, 200, 220),
    "magenta": (214, 48, 160),
    "light blue": (160, 206, 246),
    "dark blue": (22, 40, 104),
    "light green": (164, 224, 150),
    "dark green": (18, 84, 46),
    "teal": (24, 136, 136),
    "beige": (238, 222, 190),
    "white": (255, 255, 255),
}
COLOR_NAMES = list(COLORS)
SHAPES = [
    "circle",
    "square",
    "triangle",
    "star",
    "heart shape",
    "diamond",
    "hexagon",
    "ring",
    "cross",
    "rectangle",
    "oval",
    "crescent",
]
# Names besides the one that the id spells.
SYNONYMS = {
    "red-apple": ["apple"],
    "automobile": ["car", "red car"],
    "hamburger": ["burger"],
    "doughnut": ["donut"],
    "airplane": ["plane"],
    "hot-beverage": ["cup of coffee", "coffee"],
    "french-fries": ["fries"],
    "evergreen-tree": ["pine tree", "fir tree"],
    "deciduous-tree": ["tree"],
    "cat-face": ["cat head"],
    "dog-face": ["dog head"],
    "grinning-face": ["smiley", "happy face"],
    "smiling-face-with-sunglasses": ["cool face"],
    "birthday-cake": ["cake"],
    "sunflower": ["yellow flower"],
    "hibiscus": ["flower"],
    "slice-of-pizza": ["pizza"],
    "red-heart": ["heart"],
    "bicycle": ["bike"],
    "locomotive": ["steam train"],
    "honeybee": ["bee"],
    "lady-beetle": ["ladybug"],
    "sport-utility-vehicle": ["suv", "blue car"],
    "t-rex": ["dinosaur"],
    "spouting-whale": ["whale with water"],
    "house": ["home"],
    "cooked-rice": ["bowl of rice"],
    "steaming-bowl": ["ramen", "noodle soup"],
    "beer-mug": ["beer"],
    "wine-glass": ["glass of wine"],
    "mobile-phone": ["phone", "smartphone"],
    "desktop-computer": ["computer"],
    "television": ["tv"],
    "crescent-moon": ["moon"],
    "soccer-ball": ["football"],
    "ice-cream": ["bowl of ice cream"],
    "soft-ice-cream": ["ice cream cone"],
    "snow-capped-mountain": ["snowy mountain"],
    "wrapped-gift": ["gift", "present"],
    "light-bulb": ["lamp"],
    "jack-o-lantern": ["halloween pumpkin"],
    "tangerine": ["orange fruit"],
    "front-facing-baby-chick": ["chick"],
    "rabbit-face": ["bunny head"],
    "rabbit": ["bunny"],
    "pile-of-poo": ["poo"],
    "money-bag": ["bag of money"],
    "closed-umbrella": ["folded umbrella"],
    "glasses": ["eyeglasses"],
    "ship": ["big ship"],
    "motor-boat": ["boat"],
    "delivery-truck": ["truck"],
    "panda": ["panda bear"],
    "hot-pepper": ["chili pepper"],
    "ear-of-corn": ["corn"],
    "sun-with-face": ["smiling sun"],
    "umbrella-with-rain-drops": ["umbrella in the rain"],
    "potted-plant": ["houseplant"],
    "cheese-wedge": ["cheese"],
    "bottle-with-popping-cork": ["champagne bottle"],
    "christmas-tree": ["xmas tree"],
    "police-car": ["cop car"],
    "clown-face": ["clown"],
}
# Names that take no article.
MASS = {
    "bacon",
    "butter",
    "garlic",
    "salt",
    "sushi",
    "spaghetti",
    "sake",
    "broccoli",
    "popcorn",
    "rice",
    "fire",
    "ice",
    "fog",
    "wood",
    "bread",
    "soap",
    "yarn",
    "coral",
    "fries",
    "coffee",
    "beer",
    "cheese",
    "corn",
    "ramen",
    "camping",
    "cooking",
    "bowling",
    "fishing",
    "baseball",
    "basketball",
    "badminton",
    "tennis",
    "lacrosse",
    "jeans",
    "dna",
    "money",
    "ping pong",
    "poo",
    "custard",
    "curry rice",
    "oden",
    "fondue",
    "green salad",
}


def name_of(id):
    n = id.replace("-", " ")
    return (
        n.replace("mans shoe", "man's shoe")
        .replace("womans ", "woman's ")
        .replace("mens room", "men's room")
        .replace("womens room", "women's room")
    )


def plural(n):
    if n.endswith(("s", "x", "ch", "sh")):
        return n + "es"
    if n.endswith("y") and n[-2:-1] not in "aeiou":
        return n[:-1] + "ies"
    return n + "s"


def an(n):
    vowel = n[0] in "aeiou" and not n.startswith(("uni", "eu", "one", "ufo"))
    return ("an " if vowel or n.startswith("hour") else "a ") + n


def article(n, rng):
    """n with its article; 22 % of the names that take one go without."""
    w = n.split(" ")
    is_plural = w[-1].endswith("s") and not w[-1].endswith(("ss", "us", "as", "is"))
    if n in MASS or is_plural or w[0] in ("two", "three", "first", "last"):
        return n
    return n if rng.random() < 0.22 else an(n)
