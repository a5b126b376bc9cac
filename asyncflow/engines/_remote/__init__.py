"""What the engines share: an attempt on its way to a worker, there, and back.

It may import the driver and the core, and no backend. The other rooms and the faces of the engines
call it, on both sides.
"""
