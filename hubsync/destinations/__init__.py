"""Where shards go.

``base`` defines the contract: stage shards as blobs, commit a plan, read files. ``resolve`` turns a repo id into a
destination. ``instrumented`` wraps one with tracing. ``hub`` implements the contract for dataset repos on the Hub. Only
this package knows about the Hub's revisions, cards and requests.
"""
