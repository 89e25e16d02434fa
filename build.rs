//! Converts openapi.yaml to JSON, which many clients ask for and no hand should keep in step.

use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=openapi.yaml");
    let yaml = std::fs::read_to_string("openapi.yaml").expect("openapi.yaml can be read");
    let document: serde_json::Value =
        serde_yaml_ng::from_str(&yaml).expect("openapi.yaml is valid YAML");
    let folder = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    let json = Path::new(&folder).join("openapi.json");
    std::fs::write(json, document.to_string()).expect("OUT_DIR can be written");
}
