//! CloudWatch metrics of executions, in the embedded metric format.

use std::time::SystemTime;

use serde_json::json;

use super::execution_record::{ExecutionRecord, milliseconds};

/// One line of the embedded metric format. CloudWatch turns such lines in a log into metrics:
/// <https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html>.
pub fn line(record: &ExecutionRecord, function: &str, now: SystemTime) -> String {
    let metric = |name: &str, unit: &str| json!({"Name": name, "Unit": unit});
    let timestamp = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    json!({
        "_aws": {
            "Timestamp": timestamp as u64,
            "CloudWatchMetrics": [{
                "Namespace": "mainbox",
                "Dimensions": [["FunctionName"], ["FunctionName", "Outcome"]],
                "Metrics": [
                    metric("Executions", "Count"),
                    metric("Queue", "Milliseconds"),
                    metric("Run", "Milliseconds"),
                    metric("Cpu", "Milliseconds"),
                    metric("PeakMemory", "Bytes"),
                ],
            }],
        },
        "FunctionName": function,
        "Outcome": record.outcome(),
        "Executions": 1,
        "Queue": milliseconds(record.queue),
        "Run": milliseconds(record.run),
        "Cpu": milliseconds(record.cpu),
        "PeakMemory": record.peak_memory,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::api::catalogue::Kind;

    #[test]
    fn every_declared_metric_has_a_value() {
        let record = ExecutionRecord {
            ran: true,
            kind: Some(Kind::Timeout),
            queue: Duration::from_micros(1500),
            run: Duration::from_secs(1),
            cpu: Duration::from_millis(999),
            peak_memory: 4096,
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        let line: serde_json::Value = serde_json::from_str(&line(&record, "box", now)).unwrap();
        assert_eq!(line["_aws"]["Timestamp"], 1_700_000_000_123_u64);
        let declared = line["_aws"]["CloudWatchMetrics"][0]["Metrics"].as_array().unwrap();
        let values: Vec<_> =
            declared.iter().map(|metric| &line[metric["Name"].as_str().unwrap()]).collect();
        assert_eq!(values, [&json!(1), &json!(1.5), &json!(1000.0), &json!(999.0), &json!(4096)]);
        assert_eq!((&line["FunctionName"], &line["Outcome"]), (&json!("box"), &json!("timeout")));
    }
}
