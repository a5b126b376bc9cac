"""The kernel of a run: starts nodes, makes their attempts, stops them. It knows no policy.

It may import the core, asyncio and anyio. `_runtime` calls it to execute a run, and it calls the
policies of that by the hooks of its `policy`.
"""
