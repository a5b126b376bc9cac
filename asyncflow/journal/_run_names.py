"""Names of runs that people can say, remember and type: ``calm-otter-3f2a``."""

from __future__ import annotations

import secrets

from asyncflow.journal._base import SQLJournal

_ADJECTIVES = """
able agile amber bold brave breezy bright brisk calm candid cheery clear clever cosmic cosy crisp
daring deft eager early fair fancy fine fleet fond frank fresh gentle glad golden grand happy hardy
honest humble jolly keen kind lively loyal lucky lunar mellow merry mild misty modest neat nimble
noble patient placid plucky polite prime proud quick quiet ready rosy sandy serene sharp shiny
silent silver simple sleek smart snowy solar solid spry steady stout sunny sure swift tidy tranquil
trusty upbeat velvet vivid warm wise witty zesty
"""
_ANIMALS = """
alpaca ant badger beaver bee bison bobcat camel cat cheetah clam condor crab crane cricket curlew
deer dingo dolphin dove duck eagle egret elk falcon ferret finch fox gecko gibbon goat goose grouse
gull hare hawk heron hippo ibex ibis jackal jay kiwi koala lark lemur lion llama lobster lynx
magpie marmot mole moose moth mouse newt ocelot octopus orca osprey otter owl panda panther parrot
pelican penguin pigeon pony puffin quail rabbit raven robin salmon seal shrew skunk sloth sparrow
squid stork swan tapir tern tiger toad trout turtle vole walrus weasel whale wolf wombat wren yak
zebra
"""


def new_run_name() -> str:
    """Return a name that is probably unused: there are more than 500 million."""
    adjective, animal = secrets.choice(_ADJECTIVES.split()), secrets.choice(_ANIMALS.split())
    return f"{adjective}-{animal}-{secrets.token_hex(2)}"


async def free_name(journal: SQLJournal) -> str:
    """Return an unused name; a used one would resume that run."""
    while await journal.runs(text=(name := new_run_name()), limit=1):
        pass
    return name
