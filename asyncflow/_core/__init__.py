"""The pure core: what happens in a run and what follows from it, without a clock or a loop.

Its rooms, from the top: `analysis`, `running`, `history`, `pipeline`, `pools`; the modules beside
them are the ground floor, the words that all rooms use. It may import the standard library, without
asyncio, clocks, files, randomness and logging. All other packages call it.
"""
