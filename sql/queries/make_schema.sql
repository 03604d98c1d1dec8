-- make_schema: needed before anything else.
create schema if not exists dispatcher
