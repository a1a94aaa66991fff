"""What the embedded Hub keeps on disk.

`store` is the SQLite database, `history` the git side of it (refs, commits, trees), `git` knows git's formats, and
`blobs` holds the contents, one file per object.
"""
