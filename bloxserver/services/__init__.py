"""Operations that change data, one module per resource. The caller owns the session and commits the transaction."""
