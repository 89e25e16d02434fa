//! Properties: any JSON value comes back from `main` as it went in, and any text that is printed is the text of the answer.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod common;

use common::server;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{Value, json};

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>()
            .prop_filter("JSON has no others", |number| number.is_finite())
            .prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 8, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..8).prop_map(Value::from),
            btree_map(any::<String>(), inner, 0..8)
                .prop_map(|members| members.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_json_value_comes_back_equal(value in value()) {
        let answer = server().execute(&json!({"script": "def main(x): return x", "input": value}));
        prop_assert_eq!(answer.status, 200, "{}", answer.body);
        prop_assert_eq!(answer.json(), json!({"result": value, "stdout": ""}));
    }

    #[test]
    fn any_text_that_is_printed_comes_back_equal(text in any::<String>()) {
        let script = "def main(x): print(x, end='')";
        let answer = server().execute(&json!({"script": script, "input": text}));
        prop_assert_eq!(answer.json(), json!({"result": null, "stdout": text}));
    }

    #[test]
    fn any_text_in_a_script_means_itself(text in any::<String>()) {
        let literal = Value::from(text.as_str()).to_string();
        let answer = server().execute(&json!({"script": format!("def main(): return {literal}")}));
        prop_assert_eq!(answer.json(), json!({"result": text, "stdout": ""}));
    }
}
