//! Properties: `main` returns any JSON input unchanged, and any printed text is in `stdout` unchanged.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

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
            .prop_filter("JSON has finite numbers only", |number| number.is_finite())
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
    fn any_json_input_is_returned_unchanged(value in value()) {
        let response = server().execute(&json!({"script": "def main(x): return x", "input": value}));
        prop_assert_eq!(response.status, 200, "{}", response.body);
        prop_assert_eq!(response.json(), json!({"result": value, "stdout": ""}));
    }

    #[test]
    fn any_printed_text_is_returned_unchanged(text in any::<String>()) {
        let script = "def main(x): print(x, end='')";
        let response = server().execute(&json!({"script": script, "input": text}));
        prop_assert_eq!(response.json(), json!({"result": null, "stdout": text}));
    }

    #[test]
    fn any_string_literal_is_returned_unchanged(text in any::<String>()) {
        let literal = Value::from(text.as_str()).to_string();
        let response = server().execute(&json!({"script": format!("def main(): return {literal}")}));
        prop_assert_eq!(response.json(), json!({"result": text, "stdout": ""}));
    }
}
