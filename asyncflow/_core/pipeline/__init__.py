"""What was asked for: steps, retry policies, signals, and the graph that they make.

It may import `pools` and the ground floor. A program calls it when it declares a pipeline, and each
run reads what it has made, which never changes.
"""
