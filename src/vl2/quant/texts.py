"""What is asked about calibration pictures, and texts that are always calibrated on: written for this purpose."""

PICTURE_QUESTIONS = (
    "<|grounding|>Describe the picture.",
    "What is in the picture? Answer in one sentence.",
    "Read all the text in the picture, line by line.",
    "How many things of each kind are there? Answer as JSON.",
    "请描述这张图片，并指出图中的文字。",
    "What colours and shapes does the picture have, and where are they?",
    "这张图片里最重要的内容是什么？为什么？",
    "Is there anything unusual here? Explain step by step.",
)

TEXTS = (
    "A ship's log of 1871 tells of nine days of fog off the coast. On the tenth morning the mate counted three sails "
    "to the west, all of them closer than the captain liked, and the sounding line gave only six fathoms.",
    "To make bread, mix 500 g of flour with 350 g of water, 10 g of salt and a little yeast. Let it rest overnight in "
    "the cold, shape it in the morning, and bake it at 240 °C for forty minutes; the first half with steam.",
    "def mean(values: list[float]) -> float:\n    total = 0.0\n    for value in values:\n        total += value\n"
    "    return total / len(values) if values else 0.0\n\nprint(mean([3.5, 4.25, 9.0]))  # 5.583333333333333",
    '{"invoice": 20417, "date": "2024-03-18", "lines": [{"item": "paper, A4", "number": 12, "price": 4.95}, '
    '{"item": "ink, black", "number": 2, "price": 31.0}], "total": 121.4, "currency": "EUR", "paid": false}',
    "春天来了，河边的柳树发出了新芽。孩子们在草地上放风筝，老人坐在长椅上下棋。远处的钟楼敲了十二下，卖豆腐的小贩推着车慢慢走过石桥。",
    "请把下面的句子翻译成英文：昨天晚上的会议推迟到下周三下午三点，地点改在二楼的大会议室，请各部门提前准备好季度报告。",
    "The derivative of x squared is 2x, so the slope of the curve at x = 3 is 6. The tangent there is y = 6x - 9; it "
    "meets the axis at x = 1.5. Between that point and the curve lies an area of 2.25 square units.",
    "Q: The train leaves at 14:35 and needs two hours and fifty minutes. When does it arrive? A: At 17:25, if it is on "
    "time. Q: And if it is twelve minutes late? A: Then at 17:37, which still leaves eight minutes for the bus.",
    "Table 3. Rainfall in millimetres by month: January 81, February 62, March 55, April 47, May 58, June 71, July 90, "
    "August 84, September 66, October 73, November 88, December 93. The year had 868 mm, nine per cent above the mean.",
    "Dear Ms Okafor, thank you for your letter of 4 May. We have looked into the damaged parcel and will send another "
    "one without charge; please keep the broken one until our driver collects it. Kind regards, the delivery desk.",
    "光合作用是植物利用光能把二氧化碳和水合成有机物并释放氧气的过程。它发生在叶绿体中，分为光反应和暗反应两个阶段，前者需要光，后者不直接需要光。",
    "<|ref|>the red lorry<|/ref|><|det|>[[112, 340, 478, 655]]<|/det|> stands left of <|ref|>the pedestrian<|/ref|>"
    "<|det|>[[560, 401, 613, 702]]<|/det|>; the crossing is free.",
)
