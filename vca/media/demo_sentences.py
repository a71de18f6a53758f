"""What is said and written in the labelled demo archive: a pool of sentences for each fact that words carry.

Sentences of a pool speak of its fact and of no other, so that a rule over pools is a rule over meanings: only the
polar pools have a mood. Names in braces are slots. Some fillers of the slots in `ROLES` name somebody who takes part
in an event.
"""

import re
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Line:
    """One sentence."""

    kind: str
    """Pool of `SENTENCES`."""
    text: str
    roles: frozenset[str] = frozenset()
    """Participants of the task `events` that the sentence names."""


SENTENCES: dict[str, tuple[str, ...]] = {
    "cooking": (
        "Chop the {vegetable} and fry it slowly in a little butter.",
        "Add the {vegetable} to the pan and stir for {minutes} minutes.",
        "Now pour in the stock and let the {dish} simmer.",
        "Season the {dish} with salt, pepper and {herb}.",
        "Put the {dish} into the oven for {minutes} minutes.",
        "Whisk the eggs with flour and milk until the batter is smooth.",
        "Cover the pot and cook the {vegetable} on a low heat.",
        "Sprinkle some {herb} over the {dish} before serving.",
        "Peel the {vegetable}, cut it into slices and boil it.",
        "The recipe needs two cups of flour and a spoon of {herb}.",
        "Knead the dough and let it rest for {minutes} minutes.",
        "Drain the noodles and mix them with the {vegetable} sauce.",
        "Grate the cheese and spread it over the {dish}.",
    ),
    "bulletin": (
        "Good evening, here are the headlines from {city}.",
        "Breaking news: our correspondent reports live from {city}.",
        "These are today's top stories from {city} and the region.",
        "Here is the news at {hour} with reports from {city}.",
        "Our reporter in {city} has the latest on this story.",
        "We interrupt the programme for a breaking news report from {city}.",
        "The main news this {daytime}: the strike in {city} goes on.",
        "According to news agencies, {number} people came to {city}.",
        "Officials in {city} confirmed the report this {daytime}.",
        "More headlines at {hour}, after this report from {city}.",
        "Our news team has been following the events in {city} all day.",
        "This is the late edition of the news, live from {city}.",
        "A spokesperson told reporters in {city} that the talks go on.",
    ),
    "politics": (
        "Parliament debates the {bill} bill this {daytime}.",
        "The prime minister presented the {bill} law to the members of parliament.",
        "Voters elect a new government on {day}.",
        "The opposition asks for a vote on the {bill} reform.",
        "The coalition agreed on a {bill} policy on {day}.",
        "{number} members of parliament voted for the {bill} act.",
        "The senate committee discusses the {bill} amendment.",
        "The election campaign of the two parties begins on {day}.",
        "The foreign minister signed the {bill} treaty on {day}.",
        "The party congress chooses its candidate for president on {day}.",
        "The cabinet sends its {bill} bill to the senate.",
        "The mayor and the city council vote on the {bill} budget.",
        "Polling stations for the election open on {day}.",
    ),
    "alcohol": (
        "They order another round of {drink} at the bar.",
        "He pours {drink} into the glasses.",
        "She drinks a glass of {drink}.",
        "This {drink} is aged in oak barrels and has a high alcohol content.",
        "The bartender mixes {drink} with ice and tonic.",
        "We opened a second bottle of {drink} last night.",
        "After the third {drink} they ask for the bill.",
        "The pub serves {drink} and cocktails until midnight.",
        "The waiter brings a glass of {drink} to the table.",
        "Take another shot of {drink}.",
        "The brewery sells its {drink} by the barrel.",
        "Two friends drink {drink} straight from the bottle.",
        "There is {drink} in the fridge for the drinking party.",
    ),
    "question": (
        "Welcome, you are a {guest}, how did you get started?",
        "We are joined by a {guest}, what did you learn this year?",
        "Tell us, what does a {guest} do all day?",
        "My first question to you as a {guest}: why this job?",
        "You have been a {guest} for years, what has changed?",
        "Our guest is a {guest}, thank you for coming. How are you?",
        "What advice do you give to somebody who wants to be a {guest}?",
        "How did your family react when you became a {guest}?",
        "May I ask you, how long have you been a {guest}?",
        "I talk to a {guest} today. When did you know what you want to do?",
        "Can you describe your first day as a {guest}?",
        "As a {guest}, what do you wish people understood?",
    ),
    "answer": (
        "Well, thank you for having me, I started {years} years ago.",
        "I would say it was an accident, I never planned it.",
        "To be honest, I learned most of it from my parents.",
        "That is what everybody asks me. I began {years} years ago.",
        "In my case it took {years} years before I understood it.",
        "I think you have to be patient, that is my answer.",
        "Yes, I remember it, I was {years} years younger then.",
        "For me it is about the people I work with.",
        "I get up early, and I do the same thing every day.",
        "I have asked myself the same question for {years} years.",
        "Thanks for the invitation. I moved to {city} to learn it.",
        "My family told me to try it, so I did.",
    ),
    "offer": (
        "Order the {product} now for only {price}.",
        "Our {seller} shows how simple the {product} is to use.",
        "Let's unbox the {product}, it costs {price}.",
        "Look how easily the {product} works, just press this button.",
        "The {product} comes with a warranty and costs {price}.",
        "Call now and get two of the {product} for {price}.",
        "With the {product} our {seller} saves an hour every day.",
        "Our {seller} demonstrates the new {product} for you.",
        "Today the {product} is on sale for {price}.",
        "In the package are the {product}, a cable and a manual.",
        "Our {seller} has tested the {product}, which sells for {price}.",
        "You can buy the {product} in our shop for {price}.",
        "Free delivery for the {product} if you order today.",
    ),
    "emergency": (
        "The {rescuer} arrive with two vehicles.",
        "The {rescuer} ask everybody to leave the area.",
        "The {rescuer} are on duty this {daytime}.",
        "More {rescuer} are on their way.",
        "The {rescuer} have closed the entrance.",
        "There are {number} {rescuer} at the scene.",
        "The {rescuer} check one house after the other.",
        "The {rescuer} were called at {hour}.",
        "The {rescuer} carry their equipment inside.",
        "A team of {rescuer} waits at the corner.",
        "The {rescuer} finish their work at {hour}.",
        "The {rescuer} train for this every {day}.",
    ),
    "positive": (
        "I am so happy with the {thing}, it is wonderful.",
        "What a beautiful {daytime}, I love it.",
        "The {thing} was a great success, congratulations.",
        "This is the best {thing} I have ever had.",
        "I am grateful and proud, everything went well.",
        "The {thing} is excellent, I recommend it to everybody.",
        "Everybody is smiling, what a delightful {thing}.",
        "Fantastic, the {thing} is even better than we hoped.",
        "They celebrate, it is a triumph and a joy.",
        "I really enjoyed the {thing}, it was lovely.",
        "We are thrilled, the {thing} is perfect.",
        "It was a brilliant {daytime} and we had great fun.",
        "The {thing} makes me glad and full of hope.",
    ),
    "negative": (
        "I am so unhappy with the {thing}, it is terrible.",
        "What an awful {daytime}, I hate it.",
        "The {thing} was a complete failure, what a shame.",
        "This is the worst {thing} I have ever had.",
        "I am sad and angry, everything went wrong.",
        "The {thing} is useless, I warn everybody.",
        "Everybody is crying, what a miserable {thing}.",
        "Horrible, the {thing} is even worse than we feared.",
        "They mourn, it is a tragedy and a great loss.",
        "I really disliked the {thing}, it was dreadful.",
        "We are disappointed, the {thing} is broken.",
        "It was a painful {daytime} and we suffered.",
        "The {thing} makes me worried and hopeless.",
    ),
    "filler": (
        "The {thing} takes place on {day}.",
        "The building has {number} windows.",
        "We meet at {hour} on {day}.",
        "The number is written on the back of the box.",
        "Turn left at the corner and go on for {number} metres.",
        "The road to {city} is {number} kilometres long.",
        "The office is open from {hour} on {day}.",
        "The {thing} is the second of the month.",
        "There are {number} chairs in the room.",
        "They came to {city} on {day}.",
        "The door on the left is made of wood.",
        "The {thing} lasts until {hour}.",
        "The train to {city} leaves at {hour}.",
        "The list has {number} entries.",
    ),
    "title_technology": (
        "New {device} processor",
        "{device} software update",
        "{device} battery test",
        "Computer and {device} lab",
        "Code for your {device}",
        "Robots and {device}s",
        "{device} security bug",
        "Internet and {device}",
        "The {device} chip",
        "Install apps on a {device}",
        "{device} camera sensor",
        "Artificial intelligence",
        "Data on your {device}",
    ),
    "title_plain": (  # as long as those of technology, or their length would tell them apart without reading
        "An evening in {city}",
        "The {day} edition",
        "Stories, part {number}",
        "Summer days in {city}",
        "One long day in {city}",
        "The {day} magazine",
        "The regional window",
        "Tonight from {city}",
        "Chapter {number}, continued",
        "Letters from {city}",
        "In and around {city}",
        "Yesterday and today",
        "One {day} in {city}",
    ),
}

SLOTS: dict[str, tuple[str, ...]] = {
    "vegetable": ("onion", "garlic", "carrot", "potato", "tomato", "leek", "pepper", "pumpkin", "cabbage", "celery"),
    "dish": ("soup", "stew", "pie", "casserole", "roast", "curry", "lasagne", "omelette"),
    "herb": ("parsley", "basil", "thyme", "cumin", "paprika", "oregano", "nutmeg"),
    "minutes": ("five", "ten", "twelve", "fifteen", "twenty", "thirty"),
    "city": ("Lisbon", "Oslo", "Vienna", "Dublin", "Prague", "Helsinki", "Turin", "Ghent", "Riga", "Seville", "Lyon"),
    "hour": ("six", "seven", "eight", "nine", "ten", "eleven"),
    "daytime": ("morning", "afternoon", "evening"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "number": ("twelve", "twenty", "thirty", "forty", "sixty", "eighty", "two hundred"),
    "bill": ("tax", "pension", "housing", "school", "climate", "border", "trade", "health", "labour"),
    "drink": ("beer", "whisky", "red wine", "gin", "vodka", "rum", "brandy", "tequila", "cider"),
    "years": ("three", "five", "eight", "ten", "twelve", "twenty"),
    "product": ("blender", "vacuum cleaner", "hair dryer", "lamp", "kettle", "drill", "mop", "fan", "watch"),
    "price": ("nineteen euros", "thirty pounds", "forty-nine dollars", "ninety-nine euros", "twenty dollars"),
    "thing": ("trip", "party", "meeting", "concert", "visit", "weekend", "show", "course", "evening", "tour"),
    "device": ("phone", "laptop", "tablet", "server", "router", "PC", "drone"),
}

ROLES: dict[str, dict[str, str | None]] = {
    "guest": {
        "singer": "musician",
        "guitarist": "musician",
        "goalkeeper": "athlete",
        "runner": "athlete",
        "nurse": "medic",
        "doctor": "medic",
        "teacher": "teacher",
        "professor": "teacher",
    },
    "rescuer": {
        "firefighters": "firefighter",
        "fire crews": "firefighter",
        "police officers": "police",
        "policemen": "police",
        "paramedics": "medic",
        "doctors": "medic",
        "volunteers": None,
        "neighbours": None,
    },
    "seller": {"presenter": "presenter", "host": "presenter", "chef": "cook", "cook": "cook", "colleague": None},
}
"""Slots whose filler names a participant; None: somebody without a label."""


def compose(kind: str, rng: np.random.Generator) -> Line:
    """A sentence of the pool with its slots filled."""
    pool = SENTENCES[kind]
    text, roles = pool[rng.integers(len(pool))], set()
    for slot in re.findall(r"{(\w+)}", text):
        fillers = tuple(ROLES[slot]) if slot in ROLES else SLOTS[slot]
        filler = fillers[rng.integers(len(fillers))]
        role = ROLES[slot][filler] if slot in ROLES else None
        roles |= set() if role is None else {role}
        text = text.replace(f"{{{slot}}}", filler, 1)
    return Line(kind, text[0].upper() + text[1:], frozenset(roles))
