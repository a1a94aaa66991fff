"""Operations on spools and datasets from outside a job: drain, verify, rebuild, rejected rows."""
