"""Part of sqlite_query: the functions that a query may call. All of them compute and no more.

Not here, of what builds of SQLite have: load_extension, readfile, writefile, edit, fsdir and such;
fts3_tokenizer (takes a pointer), fts5 (gives one), optimize (writes), sqlite_log,
icu_load_collation, and what looks into pages: rtreecheck, rtreenode.
"""

_NAMES = """
-> ->> abs acos acosh asin asinh atan atan2 atanh avg bm25 ceil ceiling char coalesce concat
concat_ws cos cosh count cume_dist current_date current_time current_timestamp date datetime
degrees dense_rank exp first_value floor format glob group_concat hex highlight if ifnull iif
instr json json_array json_array_length json_each json_error_position json_extract
json_group_array json_group_object json_insert json_object json_patch json_pretty json_quote
json_remove json_replace json_set json_tree json_type json_valid jsonb jsonb_array jsonb_extract
jsonb_group_array jsonb_group_object jsonb_insert jsonb_object jsonb_patch jsonb_remove
jsonb_replace jsonb_set julianday lag last_value lead length like likelihood likely ln log log10
log2 lower ltrim match matchinfo max median min mod nth_value ntile nullif octet_length offsets
percent_rank percentile percentile_cont percentile_disc pi pow power printf quote radians random
randomblob rank regexp replace round row_number rtrim sign sin sinh snippet soundex
sqlite_compileoption_get sqlite_compileoption_used sqlite_source_id sqlite_version sqrt strftime
string_agg substr substring subtype sum tan tanh time timediff total trim trunc typeof unhex
unicode unistr unistr_quote unixepoch unlikely upper zeroblob
"""
ALLOWED = frozenset(_NAMES.split())
