"""From sealed segments to commits on the Hub: one module per step, connected by ``committer``.

    compressor    a segment becomes a shard of another format
    stager        its bytes become a blob on the Hub
    commit_loop   wait for the rate_limiter, plan, commit, match the outcome
    reconciler    compare with the remote files; settle
    rejections    retry a rejected shard, then quarantine it
    merger        merge small shards that are settled into large files

``card_updater`` and ``schema_check`` keep the dataset loadable; ``branch_head`` owns what is known of the branch;
``folder_guard`` keeps its folders below the Hub's limit, ``seeding`` its watermarks few. ``rollback`` detects a spool
that was restored; ``retry`` waits out errors; ``events`` is what the uploader hears; ``context`` is what all share.
"""
