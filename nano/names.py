"""What nano can see: every object, shape, colour and printed word, in English and Chinese.

One row an object: `english | plural | 中文 | measure word | file name in the emoji sets`; an empty field means
"regular" (plural = english + "s", measure word = 个, file name = english). Everything else in `nano/` (scenes,
questions, tokenizer, scores) reads its words from this file, so that a word is spelled in one place only.
"""

from __future__ import annotations

from dataclasses import dataclass

_OBJECTS = """
cat||猫|只|
dog||狗|只|
mouse|mice|老鼠|只|
rabbit||兔子|只|
fox|foxes|狐狸|只|
bear||熊|只|
panda||熊猫|只|
koala||考拉|只|
tiger||老虎|只|tiger-face
lion||狮子|只|
cow||奶牛|头|cow-face
pig||猪|头|pig-face
frog||青蛙|只|
monkey||猴子|只|
chicken||鸡|只|
penguin||企鹅|只|
bird||鸟|只|
duck||鸭子|只|
eagle||老鹰|只|
owl||猫头鹰|只|
wolf|wolves|狼|只|
horse||马|匹|horse-face
unicorn||独角兽|只|
bee||蜜蜂|只|honeybee
butterfly|butterflies|蝴蝶|只|
snail||蜗牛|只|
ladybug||瓢虫|只|lady-beetle
ant||蚂蚁|只|
spider||蜘蛛|只|
turtle||乌龟|只|
snake||蛇|条|
octopus|octopuses|章鱼|只|
crab||螃蟹|只|
shrimp||虾|只|
fish|fish|鱼|条|
dolphin||海豚|只|
whale||鲸鱼|头|spouting-whale
shark||鲨鱼|条|
crocodile||鳄鱼|条|
elephant||大象|头|
camel||骆驼|头|
sheep|sheep|绵羊|只|ewe
rooster||公鸡|只|
dragon||龙|条|dragon-face
cactus|cactuses|仙人掌|棵|
pine||松树|棵|evergreen-tree
palm||棕榈树|棵|palm-tree
clover||四叶草|棵|four-leaf-clover
mushroom||蘑菇|个|
tulip||郁金香|朵|
rose||玫瑰|朵|
sunflower||向日葵|朵|
blossom||花|朵|
sun||太阳|个|sun-with-face
moon||月亮|个|crescent-moon
cloud||云|朵|
rainbow||彩虹|道|
umbrella||雨伞|把|umbrella-with-rain-drops
snowman|snowmen|雪人|个|snowman-without-snow
fire||火|团|
apple||苹果|个|red-apple
pear||梨|个|
orange||橘子|个|tangerine
lemon||柠檬|个|
banana||香蕉|根|
watermelon||西瓜|块|
grapes|grapes|葡萄|串|
strawberry|strawberries|草莓|颗|
cherry|cherries|樱桃|颗|cherries
peach|peaches|桃子|个|
pineapple||菠萝|个|
tomato|tomatoes|西红柿|个|
eggplant||茄子|个|
avocado||牛油果|个|
carrot||胡萝卜|根|
corn|corn|玉米|根|ear-of-corn
pepper||辣椒|根|hot-pepper
cucumber||黄瓜|根|
potato|potatoes|土豆|个|
bread||面包|个|
cheese||奶酪|块|cheese-wedge
egg||鸡蛋|个|cooking
bacon|bacon|培根|块|
hamburger||汉堡|个|
pizza||披萨|块|
taco||卷饼|个|
popcorn|popcorn|爆米花|桶|
ice cream||冰淇淋|个|soft-ice-cream
doughnut||甜甜圈|个|
cookie||饼干|块|
cake||蛋糕|个|birthday-cake
candy|candies|糖果|颗|
lollipop||棒棒糖|根|
coffee||咖啡|杯|hot-beverage
beer||啤酒|杯|beer-mug
wine||红酒|杯|wine-glass
soccer ball||足球|个|
basketball||篮球|个|
baseball||棒球|个|
tennis ball||网球|个|tennis
trophy|trophies|奖杯|个|
guitar||吉他|把|
trumpet||小号|个|
violin||小提琴|把|
drum||鼓|个|
car||汽车|辆|automobile
taxi||出租车|辆|
bus|buses|公交车|辆|
tractor||拖拉机|辆|
bicycle||自行车|辆|
train||火车|列|locomotive
airplane||飞机|架|
rocket||火箭|枚|
helicopter||直升机|架|
sailboat||帆船|艘|
anchor||船锚|个|
house||房子|座|
castle||城堡|座|
tent||帐篷|个|
clock||闹钟|个|alarm-clock
phone||电话|部|telephone
television||电视|台|
camera||相机|台|
light bulb||灯泡|个|
book||书|本|closed-book
envelope||信封|个|
pencil||铅笔|支|
scissors|scissors|剪刀|把|
key||钥匙|把|
lock||锁|把|locked
hammer||锤子|把|
telescope||望远镜|台|
candle||蜡烛|根|
gift||礼物|个|wrapped-gift
balloon||气球|个|
bell||铃铛|个|
crown||王冠|个|
hat||帽子|顶|top-hat
glasses|glasses|眼镜|副|
shirt||衬衫|件|t-shirt
dress|dresses|裙子|条|
shoe||鞋子|只|running-shoe
diamond ring||戒指|个|ring
robot||机器人|个|
ghost||幽灵|个|
alien||外星人|个|
skull||骷髅|个|
pumpkin||南瓜|个|jack-o-lantern
"""

#: Objects that look alike, of which one is easily taken for another: what to ask for when it is not there.
ALIKE: tuple[tuple[str, ...], ...] = tuple(
    tuple(word.strip() for word in row.split(","))
    for row in """
cat, tiger, lion, fox, wolf, dog
bear, koala, panda, mouse, monkey
cow, pig, sheep, camel, horse, elephant
unicorn, horse, dragon, crocodile
rabbit, mouse, cat
chicken, rooster, duck, penguin, bird, eagle, owl
bee, ant, spider, ladybug, butterfly
snail, turtle, snake, frog, crocodile
octopus, crab, shrimp, spider
fish, dolphin, whale, shark
cactus, pine, palm, clover, cucumber
tulip, rose, sunflower, blossom
sun, moon, egg, lemon, sunflower
cloud, rainbow, umbrella, snowman, ghost
apple, pear, orange, tomato, peach, cherry, strawberry
lemon, banana, corn, pineapple, cheese
grapes, eggplant, avocado, potato, pear
carrot, pepper, cucumber, corn
bread, hamburger, taco, pizza, potato
bacon, pizza, watermelon, cheese
popcorn, ice cream, cake, candle
doughnut, cookie, candy, lollipop
coffee, beer, wine, trophy
soccer ball, basketball, baseball, tennis ball, orange
guitar, violin, trumpet, drum
car, taxi, bus, tractor, train
bicycle, tractor, glasses, scissors
airplane, rocket, helicopter, bird
sailboat, tent, anchor
house, castle, tent, gift
clock, phone, television, camera, robot
light bulb, balloon, bell, lollipop
book, envelope, phone, gift
pencil, hammer, key, scissors, candle, carrot
lock, key, gift, bell
telescope, trumpet, camera, rocket
crown, hat, bell, diamond ring
shirt, dress, shoe, hat
robot, alien, ghost, skull, pumpkin
fire, pepper, tulip, candle
mushroom, umbrella, tomato, cake
""".strip().splitlines()
)

#: The eight colours, as `english: (中文, RGB)`. Far enough apart that no dye or noise turns one into another.
COLOURS: dict[str, tuple[str, tuple[int, int, int]]] = {
    "red": ("红色", (220, 30, 35)),
    "orange": ("橙色", (250, 135, 15)),
    "yellow": ("黄色", (250, 220, 40)),
    "green": ("绿色", (40, 160, 60)),
    "blue": ("蓝色", (35, 85, 215)),
    "purple": ("紫色", (130, 50, 175)),
    "black": ("黑色", (25, 25, 28)),
    "white": ("白色", (248, 248, 248)),
}

#: The eight shapes, as `english: (plural, 中文)`; none shares its name with an object.
SHAPES: dict[str, tuple[str, str]] = {
    "circle": ("circles", "圆形"),
    "square": ("squares", "正方形"),
    "triangle": ("triangles", "三角形"),
    "diamond": ("diamonds", "菱形"),
    "star": ("stars", "星形"),
    "heart": ("hearts", "心形"),
    "cross": ("crosses", "十字形"),
    "hexagon": ("hexagons", "六边形"),
}

#: Words that scenes print (beside numbers and letter strings); none is the name of an object.
WORDS = """
market hotel garden street station museum school office library airport theater cinema kitchen window mirror
silver golden copper winter summer spring autumn monday friday sunday morning evening midnight coffee-shop open
closed welcome danger caution exit entry push pull stop start sale free fresh hot cold sugar honey butter pasta
rice soup salad tea water juice milk north south east west left right river forest island mountain valley desert
ocean beach bridge harbor tower temple palace village city capital planet galaxy comet orbit rocketry signal radio
video music dance drama comedy poetry novel story letter stamp ticket number answer question reason logic energy
power light sound motion speed force metal paper glass cotton velvet leather marble stone brick cement timber
doctor nurse pilot captain farmer baker painter writer singer teacher student lawyer judge mayor king queen prince
happy brave quiet clever gentle honest proud simple lucky sunny windy cloudy rainy snowy stormy misty frozen
quick brown jumps over lazy zebra vortex jigsaw quartz sphinx wizard fjord oxygen quiz whiskey bazaar puzzle
""".split()

#: The Chinese characters that scenes print (300, frequent ones).
HANZI = (
    "的一是不了在人有我他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后小么"
    "心多天而能好都然没日于起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长知民样现"
    "分将外但身些与高意进把法此实回二理美点月明其种声全工己话儿者向情部正名定女问力机给等几很业最间新什打便位"
    "因重被走电四第门相次东政海口使教西再平真听世气信北少关并内加化由却代军产入先山五太水万市眼体别处总才场师"
    "书比住员九笑性通目华报立马命张活难神数件安表原车白应路期叫死常提感金何更反合放做系计或司利受光王果亲界及"
    "今京务制解各任至清物台象记边共风战干接它许八特觉望直服毛林题建南度统色字请交爱让认算论百吃义"
)[:300]


@dataclass(frozen=True, slots=True)
class Thing:
    """One pictogram class: its names in both languages and its file name in the emoji sets."""

    english: str
    plural: str
    chinese: str
    measure: str
    slug: str


def _parse(row: str) -> Thing:
    english, plural, chinese, measure, slug = row.split("|")
    return Thing(english, plural or english + "s", chinese, measure or "个", slug or english.replace(" ", "-"))


OBJECTS: tuple[Thing, ...] = tuple(_parse(row) for row in _OBJECTS.strip().splitlines())
