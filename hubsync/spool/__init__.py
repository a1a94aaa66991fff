"""The durable store on local disk: it holds every row until it is committed.

opening     find a spool and check that it may be used
spool       the directory, and the parts below
  writer      appends batches to segments, in takes
  segments    every SQL statement on segments: named transitions, typed rows
  shards      sealed segments: checked, hashed, picked for staging and committing
  unreadable  files that the disk refuses
  plans       the next commit, written down before it is sent
  recovery    what dead and stalled processes left
  quarantine  rejected shards
  retention   which settled segments the catalogue forgets
  lease       the right to commit
  writers, offsets, schemas, cards   tables of the catalogue, one owner each
database    the catalogue's SQLite connection
host        the machine that uses the spool
disk        a reserve for a full disk
"""
