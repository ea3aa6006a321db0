"""The kinds of things in the drawn world, and what people call one and several of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of thing.

    Args:
        name: of one, "cat".
        names: of several, "cats".
        emoji: the code points of its picture, as the artwork's files are named.
    """

    name: str
    names: str
    emoji: str

    @property
    def one(self) -> str:
        """With its article: "a cat", "an owl"."""
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"


_LISTED = """
airplane airplanes 2708-fe0f | apple apples 1f34e | ball balls 26bd | balloon balloons 1f388 | banana bananas 1f34c
bee bees 1f41d | bell bells 1f514 | bicycle bicycles 1f6b2 | boat boats 26f5 | burger burgers 1f354 | bus buses 1f68c
butterfly butterflies 1f98b | car cars 1f697 | carrot carrots 1f955 | cat cats 1f431 | cow cows 1f42e
crab crabs 1f980 | crown crowns 1f451 | dog dogs 1f436 | donut donuts 1f369 | duck ducks 1f986
elephant elephants 1f418 | fish fish 1f41f | fox foxes 1f98a | frog frogs 1f438 | guitar guitars 1f3b8 | hat hats 1f3a9
heart hearts 2764-fe0f | house houses 1f3e0 | key keys 1f511 | monkey monkeys 1f435 | mushroom mushrooms 1f344
octopus octopuses 1f419 | owl owls 1f989 | panda pandas 1f43c | penguin penguins 1f427 | pig pigs 1f437
pineapple pineapples 1f34d | pizza pizzas 1f355 | rabbit rabbits 1f430 | snail snails 1f40c | star stars 2b50
strawberry strawberries 1f353 | tractor tractors 1f69c | tree trees 1f333 | turtle turtles 1f422
umbrella umbrellas 2602-fe0f | watermelon watermelons 1f349
"""

KINDS = tuple(Kind(*entry.split()) for line in _LISTED.strip().splitlines() for entry in line.split(" | "))
BY_NAME = {kind.name: kind for kind in KINDS}
