"""The words the model knows, and words it has to keep quiet about."""

from __future__ import annotations


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text that is easier to read than a list."""
    return tuple(text.split())


DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

COMMANDS = words_of("""
    yes no stop go start
    up down left right on off
    open close play pause next back
    louder quieter volume light music
    door window kitchen bedroom garage
    red green blue yellow white black
    please help cancel hello goodbye thanks
    save delete call answer send message
    timer alarm weather temperature
    morning evening today tomorrow
    minute second hour percent
    turn set repeat forward record
    television camera lock unlock battery
    warmer cooler ready
""")

WORDS = (*DIGITS, *COMMANDS)

# Everyday words that are neither in the vocabulary nor sound like one of its words: speech that is
# heard and not transcribed.
OTHER_WORDS = words_of(
    """
    about above across afraid again agree almost animal another apple arrive autumn banana basket
    because become before behind believe beneath between bicycle birthday blanket borrow bottle
    bread breakfast bridge brother bucket building business butter cabbage carpet castle ceiling
    chicken children chocolate church circle city clever cloud coffee colour common company
    copper country cousin curious dangerous daughter decide different difficult dinner doctor dog
    during early earth elephant empty engine enough every example family famous father feather
    finger finish fish flower follow foreign forest friend garden gentle giraffe glass grandmother
    happy hammer harbour heavy history holiday honest hospital house however hundred husband
    imagine important island jacket journey jungle kangaroo kettle kingdom ladder language laugh
    leather lemon letter library little machine magazine market maybe measure medicine middle
    mirror mistake money monkey mother mountain mouse nature necessary neighbour newspaper
    nobody notice number ocean office often orange orchestra other paper parents pencil people
    perhaps person picture pocket potato problem promise purple question quickly rabbit railway
    rather reason remember restaurant river sandwich scissors school several shadow sheep shoulder
    sister soldier something somewhere spider station stomach story strawberry street student sugar
    suggest summer swimming teacher telephone theatre therefore thousand tiger together tomato
    tongue tractor travel treasure trouble umbrella uncle under understand vegetable village
    violin visit water wednesday whisper without woman wonderful wooden yesterday young zebra
    """
)
