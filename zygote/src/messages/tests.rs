use std::vec::Vec;

use proptest::prelude::*;

use super::*;

fn flags() -> impl Strategy<Value = (bool, bool)> {
    any::<(bool, bool)>()
}

proptest! {
    #[test]
    fn every_start_is_read_as_it_was_sent(
        uid in any::<Option<u32>>(),
        (warm_up, has_mount) in flags(),
        has_ruleset in any::<bool>(),
        scratch in "[^\0]{0,40}\0",
        options in "[^\0]{0,40}\0",
        limits in proptest::collection::vec(any::<(u32, u64, u64)>(), 0..12),
    ) {
        let limits: Vec<_> = limits
            .into_iter()
            .map(|(resource, soft, hard)| Limit { resource, soft, hard })
            .collect();
        let encoded: Vec<_> = limits.iter().copied().map(Limit::encode).collect();
        let options = CStr::from_bytes_with_nul(options.as_bytes()).unwrap();
        let start = Start {
            uid,
            warm_up,
            scratch: CStr::from_bytes_with_nul(scratch.as_bytes()).unwrap(),
            mount: has_mount.then_some(options),
            has_ruleset,
            limits: &encoded,
        };
        let mut bytes = Vec::new();
        start.encode(&mut bytes);
        prop_assert_eq!(Start::decode(&bytes), Some(start));
        prop_assert_eq!(encoded.iter().copied().map(Limit::decode).collect::<Vec<_>>(), limits);
        // One that is cut off is refused.
        bytes.pop();
        prop_assert_eq!(Start::decode(&bytes), None);
    }

    #[test]
    fn every_policy_is_read_as_it_was_sent(
        (prctl, user_namespace) in flags(),
        own_process in any::<u32>(),
        mut filter in proptest::collection::vec(any::<Instruction>(), 0..12),
    ) {
        let policy = Policy { prctl, user_namespace, own_process, filter: &mut filter };
        let mut bytes = Vec::new();
        policy.encode(&mut bytes);
        prop_assert_eq!(Policy::decode(&mut bytes), Some(Policy { filter: &mut *policy.filter, ..policy }));
        bytes.push(0);
        prop_assert_eq!(Policy::decode(&mut bytes), None);
    }

    #[test]
    fn every_report_is_read_as_it_was_sent(
        worker in any::<u64>(), status in any::<i32>(), cpu_us in any::<u64>(), peak_bytes in any::<u64>(),
    ) {
        let exit = Exit { status, cpu_us, peak_bytes };
        let moved = Event::HeapMoved { bytes: peak_bytes, errno: status };
        for event in [Event::Reaped(exit), Event::ForkFailed(status), moved] {
            let report = Report { worker, event };
            prop_assert_eq!(Report::decode(&report.encode()), Some(report));
        }
        for order in [Order::Fork(worker), Order::Reap(worker)] {
            prop_assert_eq!(Order::decode(&order.encode()), Some(order));
        }
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        let _ = Start::decode(&bytes);
        let _ = Policy::decode(&mut bytes.clone());
    }
}

#[test]
fn every_step_is_read_as_it_was_sent() {
    for step in Step::ALL {
        let failure = Failure { step, errno: 13 };
        assert_eq!(Failure::decode(&failure.encode()), Some(failure));
    }
    assert_eq!(Failure::decode(&[15, 13, 0, 0, 0]), None);
    assert_eq!(Order::decode(b"X12345678"), None);
    assert_eq!(Report::decode(&[0; Report::BYTES]), None);
}
