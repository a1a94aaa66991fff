"""One process that uploads for all spools of a host and user: `hubsync agent`.

agent    finds spools, serves those that changed with a committer each, and lets idle ones go
health   a page of JSON for supervisors
"""
