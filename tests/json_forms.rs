//! The JSON form of every type of result, as the table in the README lists them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::server;
use indoc::{formatdoc, indoc};
use proptest::prelude::*;
use serde_json::json;

const IMPORTS: &str = "
import collections, dataclasses, datetime, decimal, enum, fractions, pathlib, re, typing, uuid
import numpy as np
import pandas as pd

class Color(enum.Enum):
    RED = 'red'

class Level(enum.IntEnum):
    HIGH = 3

@dataclasses.dataclass
class Point:
    x: int
    tags: set

class Pair(typing.NamedTuple):
    a: int
    b: str

def cycle():
    x = {'a': []}
    x['a'].append(x)
    return x

def nested(depth):
    x = 1
    for _ in range(depth):
        x = [x]
    return x
";

/// Evaluates every expression in one run and compares the JSON of the results byte by byte.
#[track_caller]
fn have_forms(rows: &[(&str, &str)]) {
    let expressions: Vec<&str> = rows.iter().map(|(expression, _)| *expression).collect();
    let script = formatdoc! {r#"
        {IMPORTS}
        def main():
            return [{}]
    "#, expressions.join(",\n        ")};
    let expected: Vec<&str> = rows.iter().map(|(_, json)| *json).collect();
    let response = server().run(&script);
    assert_eq!(response.body, format!("{{\"result\":[{}],\"stdout\":\"\"}}", expected.join(",")));
}

#[track_caller]
fn has_no_form(expression: &str, error: &str) {
    let response = server().run(&formatdoc! {r#"
        {IMPORTS}
        def main():
            return {expression}
    "#});
    assert_eq!(response.failure(), (400, String::from("not_json"), error.to_owned()));
}

#[test]
fn plain_values_are_unchanged() {
    have_forms(&[
        ("None", "null"),
        ("True", "true"),
        ("-0.5", "-0.5"),
        ("1e300", "1e+300"),
        ("2**100", "1267650600228229401496703205376"),
        ("-(10**30)", "-1000000000000000000000000000000"),
        ("'é\\u2028\\n\"'", "\"é\u{2028}\\n\\\"\""),
        ("[]", "[]"),
        ("{}", "{}"),
        ("(1, (2, [3]))", "[1,[2,[3]]]"),
        ("Pair(1, 'x')", "[1,\"x\"]"),
        ("{'b': 1, 'a': 2}", "{\"b\":1,\"a\":2}"),
        ("collections.Counter('aab')", "{\"a\":2,\"b\":1}"),
    ]);
}

#[test]
fn nan_and_infinities_are_null_everywhere() {
    have_forms(&[
        ("float('nan')", "null"),
        ("[1.5, float('inf'), -float('inf')]", "[1.5,null,null]"),
        ("{'x': np.nan}", "{\"x\":null}"),
        ("np.array([1.0, np.nan])", "[1.0,null]"),
        ("np.float32('nan')", "null"),
        ("decimal.Decimal('NaN')", "null"),
        ("pd.NaT", "null"),
        ("pd.NA", "null"),
        ("pd.Series([1.0, None])", "{\"0\":1.0,\"1\":null}"),
    ]);
}

#[test]
fn keys_become_strings() {
    have_forms(&[
        ("{1: 'a', 2.5: 'b', True: 'c'}", "{\"1\":\"c\",\"2.5\":\"b\"}"),
        ("{None: 1, False: 2}", "{\"null\":1,\"false\":2}"),
        ("{np.int64(7): 1, np.float64(0.5): 2}", "{\"7\":1,\"0.5\":2}"),
        ("{datetime.date(2024, 1, 2): 1}", "{\"2024-01-02\":1}"),
        ("{pd.Timestamp('2024-01-02'): 1}", "{\"2024-01-02T00:00:00\":1}"),
        ("{Color.RED: 1, Level.HIGH: 2}", "{\"red\":1,\"3\":2}"),
        ("{2**70: 1}", "{\"1180591620717411303424\":1}"),
    ]);
    have_forms(&[
        ("{(1, 'a'): 2}", "{\"[1,\\\"a\\\"]\":2}"),
        ("{pd.Period('2024-01'): 1, pd.Interval(0, 5): 2}", "{\"2024-01\":1,\"(0, 5]\":2}"),
        ("{np.str_('x'): 1}", "{\"x\":1}"),
        ("{np.float32('nan'): 1, np.float32('inf'): 2}", "{\"nan\":1,\"inf\":2}"),
    ]);
    has_no_form(
        "[{frozenset({1}): 3}]",
        "result[0] has the key frozenset({1}), which has no JSON form",
    );
    has_no_form("{1: 'a', '1': 'b'}", "result['1'] stands for two different keys");
}

#[test]
fn numpy_scalars_of_every_type_have_a_form() {
    have_forms(&[
        ("[t(3) for t in (np.int8, np.int16, np.int32, np.int64)]", "[3,3,3,3]"),
        ("[t(3) for t in (np.uint8, np.uint16, np.uint32, np.uint64)]", "[3,3,3,3]"),
        ("np.uint64(2**64 - 1)", "18446744073709551615"),
        (
            "[t(0.5) for t in (np.float16, np.float32, np.float64, np.longdouble)]",
            "[0.5,0.5,0.5,0.5]",
        ),
        ("[np.bool_(True), np.str_('x'), np.bytes_(b'x')]", "[true,\"x\",\"eA==\"]"),
        ("np.datetime64('2024-01-02T03:04')", "\"2024-01-02T03:04\""),
        ("np.datetime64('NaT')", "null"),
        ("np.timedelta64(90, 's')", "90.0"),
        ("np.ma.array([1.0, 2.0], mask=[1, 1]).mean()", "null"),
        ("np.array((1, 'a'), dtype=[('n', int), ('s', 'U1')])[()]", "[1,\"a\"]"),
    ]);
    have_forms(&[("[1j, np.complex128(1)]", "[{\"re\":0.0,\"im\":1.0},{\"re\":1.0,\"im\":0.0}]")]);
}

#[test]
fn arrays_are_nested_arrays() {
    have_forms(&[
        ("np.arange(6).reshape(2, 3)", "[[0,1,2],[3,4,5]]"),
        ("np.array(5)", "5"),
        ("np.array([True, False])", "[true,false]"),
        ("np.array(['a', None], dtype=object)", "[\"a\",null]"),
        ("np.array(['2024-01-02', 'NaT'], dtype='datetime64[D]')", "[\"2024-01-02\",null]"),
        ("np.array([[1, 2]], dtype='timedelta64[m]')", "[[60.0,120.0]]"),
    ]);
}

#[test]
fn pandas_objects_have_one_form_each() {
    have_forms(&[
        (
            "pd.DataFrame({'a': [1, 2], 'b': ['x', None], 't': pd.to_datetime(['2024-01-02', None])})",
            "[{\"a\":1,\"b\":\"x\",\"t\":\"2024-01-02T00:00:00\"},{\"a\":2,\"b\":null,\"t\":null}]",
        ),
        ("pd.DataFrame()", "[]"),
        ("pd.Series({'x': 1, 'y': 2})", "{\"x\":1,\"y\":2}"),
        ("pd.Series([1.5], index=pd.to_datetime(['2024-01-02']))", "{\"2024-01-02T00:00:00\":1.5}"),
        ("pd.Timestamp('2024-01-02 03:04:05', tz='UTC')", "\"2024-01-02T03:04:05+00:00\""),
        ("pd.Timedelta('1h')", "3600.0"),
        ("pd.Index([1, 2])", "[1,2]"),
        ("pd.Categorical(['a', 'b', 'a'])", "[\"a\",\"b\",\"a\"]"),
        ("pd.array([1, None], dtype='Int64')", "[1,null]"),
    ]);
    has_no_form(
        "{'s': pd.Series([1, 2], index=['a', 'a'])}",
        "result.s is a Series with duplicate labels; return .tolist() or .reset_index() instead",
    );
    has_no_form(
        "pd.DataFrame([[1, 2]], columns=['a', 'a'])",
        "result is a DataFrame with duplicate column labels",
    );
}

/// Row labels are results: groupby, describe and pivot_table put what was asked for into the index.
#[test]
fn the_index_of_a_data_frame_comes_first_in_each_row() {
    let towns =
        "pd.DataFrame({'town': ['Oslo', 'Oslo', 'Rome'], 'kind': ['a', 'b', 'a'], 'v': [1, 2, 3]})";
    let forms = [
        (
            format!("{towns}.groupby('town')[['v']].sum()"),
            "[{\"town\":\"Oslo\",\"v\":3},{\"town\":\"Rome\",\"v\":3}]",
        ),
        (
            format!("{towns}.groupby(['town', 'kind'])[['v']].sum().head(1)"),
            "[{\"town\":\"Oslo\",\"kind\":\"a\",\"v\":1}]",
        ),
        (
            format!("{towns}.groupby(['town', 'kind']).v.sum().head(2)"),
            "{\"[\\\"Oslo\\\",\\\"a\\\"]\":1,\"[\\\"Oslo\\\",\\\"b\\\"]\":2}",
        ),
        (
            format!("{towns}.groupby('town').agg({{'v': ['sum', 'max']}}).head(1)"),
            "[{\"town\":\"Oslo\",\"[\\\"v\\\",\\\"sum\\\"]\":3,\"[\\\"v\\\",\\\"max\\\"]\":2}]",
        ),
        (format!("{towns}[['v']].describe().loc[['min']]"), "[{\"index\":\"min\",\"v\":1.0}]"),
        (format!("{towns}[['v']].loc[[2]]"), "[{\"index\":2,\"v\":3}]"),
        (
            format!("{towns}.pivot_table(index='town', columns='kind', values='v').loc[['Rome']]"),
            "[{\"town\":\"Rome\",\"a\":3.0,\"b\":null}]",
        ),
        (format!("{towns}[['v']].corr()"), "[{\"index\":\"v\",\"v\":1.0}]"),
        (
            format!("pd.crosstab({towns}.town, {towns}.kind).loc[['Rome']]"),
            "[{\"town\":\"Rome\",\"a\":1,\"b\":0}]",
        ),
        (
            String::from(
                "pd.DataFrame({'v': [1]}, index=pd.to_datetime(['2024-01-31'])).resample('ME').sum()",
            ),
            "[{\"index\":\"2024-01-31T00:00:00\",\"v\":1}]",
        ),
        (
            String::from("pd.cut(pd.Series([1, 7]), [0, 5, 10]).value_counts()"),
            "{\"(0, 5]\":1,\"(5, 10]\":1}",
        ),
        (
            String::from("pd.DataFrame({'v': [1]}, index=pd.MultiIndex.from_tuples([(1, 'x')]))"),
            "[{\"level_0\":1,\"level_1\":\"x\",\"v\":1}]",
        ),
        (String::from("pd.DataFrame({'v': []})"), "[]"),
        (
            format!("{towns}.groupby('town').agg({{'town': ['count']}}).head(1)"),
            "[{\"town\":\"Oslo\",\"[\\\"town\\\",\\\"count\\\"]\":2}]",
        ),
        (
            String::from("pd.DataFrame({'v': [1]}, index=pd.Index([pd.NA], dtype='Int64'))"),
            "[{\"index\":null,\"v\":1}]",
        ),
        (String::from("pd.DataFrame({'v': [5, 6]}).iloc[0:1]"), "[{\"v\":5}]"),
    ];
    let rows: Vec<(&str, &str)> = forms.iter().map(|(code, json)| (code.as_str(), *json)).collect();
    have_forms(&rows);
    has_no_form(
        "pd.DataFrame({'v': [1]}, index=pd.MultiIndex.from_tuples([(1, 2)], names=['a', 'a']))",
        "result is a DataFrame with two index levels of one name; name them by .rename_axis([...])",
    );
    has_no_form(
        "[np.timedelta64(3, 'M')]",
        "result[0] is a timedelta64 in months or years, which have no length in seconds",
    );
    has_no_form(
        &format!("{towns}.set_index('v', drop=False)"),
        "result is a DataFrame whose index and column are both called 'v'; return .reset_index(drop=True), or name the index by .rename_axis(...)",
    );
}

#[test]
fn types_of_the_standard_library_have_one_form_each() {
    have_forms(&[
        ("datetime.datetime(2024, 1, 2, 3, 4, 5)", "\"2024-01-02T03:04:05\""),
        ("datetime.date(2024, 1, 2)", "\"2024-01-02\""),
        ("datetime.time(3, 4)", "\"03:04:00\""),
        ("datetime.timedelta(minutes=1, milliseconds=500)", "60.5"),
        ("decimal.Decimal('1.10')", "\"1.10\""),
        ("uuid.UUID(int=1)", "\"00000000-0000-0000-0000-000000000001\""),
        ("{3, 1, 2}", "[1,2,3]"),
        (
            "[collections.deque([1]), range(2), {'a': 1}.keys(), map(str, [1])]",
            "[[1],[0,1],[\"a\"],[\"1\"]]",
        ),
        ("fractions.Fraction(1, 3)", "\"1/3\""),
        ("frozenset({'b', 'a'})", "[\"a\",\"b\"]"),
        ("b'\\x00\\xff'", "\"AP8=\""),
        ("bytearray(b'abc')", "\"YWJj\""),
        ("memoryview(b'abc')", "\"YWJj\""),
        ("memoryview(b'abcd')[::2]", "\"YWM=\""),
        ("pathlib.Path('a/b')", "\"a/b\""),
        ("Color.RED", "\"red\""),
        ("Level.HIGH", "3"),
        ("Point(1, {2})", "{\"x\":1,\"tags\":[2]}"),
    ]);
}

#[test]
fn a_value_without_a_form_is_named_with_its_place() {
    has_no_form("object()", "result is of type object, which has no JSON form");
    has_no_form(
        "{'rows': [0, 1, 2, {'fn': lambda: 1}]}",
        "result.rows[3].fn is of type function, which has no JSON form; call it and return its result",
    );
    has_no_form(
        "{'a b': re.match('a', 'a')}",
        "result['a b'] is of type re.Match, which has no JSON form; return .group() or .groups()",
    );
    has_no_form(
        "Point",
        "result is of type type, which has no JSON form; return an instance of it, or its name",
    );
    has_no_form(
        "(x for x in [1])",
        "result is of type generator, which has no JSON form; return a list, as list(...) makes one",
    );
    has_no_form(
        "pd.DataFrame({'a': [1]}).groupby('a')",
        "result is of type pandas.api.typing.DataFrameGroupBy, which has no JSON form; return an aggregate, such as .sum()",
    );
}

#[test]
fn cycles_and_deep_nesting_are_refused() {
    has_no_form("cycle()", "result.a[0] contains itself");
    has_no_form("nested(101)", "result is nested deeper than 100 levels");
    has_no_form("nested(100_000)", "result is nested deeper than 100 levels");
    assert_eq!(
        server()
            .run(&formatdoc! {r#"
                {IMPORTS}
                def main():
                    return nested(100)
            "#})
            .status,
        200
    );
}

#[test]
fn lone_surrogates_become_replacement_characters() {
    have_forms(&[
        ("'a\\ud800b'", "\"a\u{fffd}b\""),
        ("'\\ud83d\\ude00'", "\"😀\""),
        ("{'\\udc00': 1}", "{\"\u{fffd}\":1}"),
    ]);
}

#[test]
fn a_three_megabyte_list_is_complete() {
    let response = server().run("def main(): return ['x' * 97] * 30_000");
    assert_eq!(response.status, 200);
    assert_eq!(response.json()["result"], json!(vec!["x".repeat(97); 30_000]));
}

/// What a worker encodes in machine code, and a list too short for it, each with the name `value`.
const LONG_VALUES: [&str; 9] = [
    "[number() for _ in range(8500)]",
    "{'a': [number() for _ in range(1000)], 'b': [1, [number() for _ in range(2000)], 'x'], 'c': 'd'}",
    "[None if random.random() < 0.1 else number() for _ in range(1000)]",
    "[number() for _ in range(999)]",
    "[random.choice([1, True, 'a', 0.5]) for _ in range(1000)]",
    "''.join(chr(random.randrange(128)) for _ in range(100_001))",
    "''.join(chr(random.choice([10, 34, 92, 233, 0x20ac, 0x1f600])) for _ in range(100_001))",
    "{'a': 'x' * 100_000, 'b': ['y\\n' * 50_000, 1.5], 'c': ('z' * 99_999,)}",
    "['\\n' * 32_768 * 4, '\\x1f' * 100_000]",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn long_results_have_the_same_bytes_as_from_python(seed: u64) {
        for value in LONG_VALUES {
            let response = server().run(&formatdoc! {"
                import json, math, random, struct

                def number():
                    # A value of any bits, one with few digits, or one that may be halfway between two short numbers.
                    match random.randrange(3):
                        case 0:
                            value = struct.unpack('d', random.randbytes(8))[0]
                        case 1:
                            value = random.randrange(-10**6, 10**6) / 10 ** random.randrange(25)
                        case _:
                            value = random.randrange(2**53) / 2 ** random.randrange(60)
                    return value if math.isfinite(value) else 0.0

                def main():
                    random.seed({seed})
                    value = {value}
                    print(json.dumps(value, ensure_ascii=False, separators=(',', ':')), end='')
                    return value
            "});
            let expected = response.json()["stdout"].as_str().unwrap().to_owned();
            let start = format!("{{\"result\":{expected},\"stdout\":");
            prop_assert!(expected.len() > 1000 && response.body.starts_with(&start), "{value} with the seed {seed}");
        }
    }
}

#[test]
fn long_results_with_values_that_json_has_not_take_their_documented_forms() {
    let script = indoc! {"
        import numpy as np

        class Text(str):
            pass

        def main():
            lone = '\\ud800' + 'x' * 100_000
            many = np.array([0.5, np.nan, np.inf] * 1000)
            return [many, {tuple([0.5] * 1000): 1}, lone, Text('y' * 100_000), {'z' * 100_000: 'z' * 100_000}]
    "};
    let expected = [
        format!("[{}]", ["0.5,null,null"; 1000].join(",")),
        format!("{{\"[{}]\":1}}", ["0.5"; 1000].join(",")),
        format!("\"\u{fffd}{}\"", "x".repeat(100_000)),
        format!("\"{}\"", "y".repeat(100_000)),
        format!("{{\"{z}\":\"{z}\"}}", z = "z".repeat(100_000)),
    ];
    let body = server().run(script).body;
    assert!(
        body == format!("{{\"result\":[{}],\"stdout\":\"\"}}", expected.join(",")),
        "{body:.300}"
    );
}
