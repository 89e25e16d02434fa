"""What to use instead of what newer versions of pandas removed. Many scripts are written for older ones.

Where pandas says this itself, as it does of frequencies (`'M' is no longer supported`), nothing is added.
"""

MOVED = {
    "'DataFrame' object has no attribute 'append'": "pd.concat([a, b])",
    "'DataFrame' object has no attribute 'applymap'": "DataFrame.map",
    "'DataFrame' object has no attribute 'iteritems'": "DataFrame.items",
    "'DataFrame' object has no attribute 'ix'": ".loc and .iloc",
    "'DataFrame' object has no attribute 'pad'": "DataFrame.ffill",
    "'Series' object has no attribute 'append'": "pd.concat([a, b])",
    "'Series' object has no attribute 'iteritems'": "Series.items",
    "'Series' object has no attribute 'mad'": "(s - s.mean()).abs().mean()",
    "'Series' object has no attribute 'pad'": "Series.ffill",
    "'Series' object has no attribute 'view'": "Series.astype",
    "module 'pandas' has no attribute 'Int64Index'": "pd.Index",
    "module 'pandas' has no attribute 'value_counts'": "Series.value_counts",
    "NDFrame.fillna() got an unexpected keyword argument 'method'": ".ffill() and .bfill()",
    "DataFrame.groupby() got an unexpected keyword argument 'axis'": "df.T.groupby(...)",
    "read_csv() got an unexpected keyword argument 'delim_whitespace'": 'sep=r"\\s+"',
    "read_csv() got an unexpected keyword argument 'error_bad_lines'": 'on_bad_lines="skip"',
}


def moved(error: BaseException) -> str:
    """Returns the rest of a sentence about an error, or nothing."""
    message = error.args[0] if len(error.args) == 1 else None
    replacement = MOVED.get(message) if type(message) is str else None
    return f"; use {replacement} instead" if replacement else ""
