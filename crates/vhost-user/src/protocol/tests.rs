use super::answer::*;
use super::code::Code;
use super::decode::decode;
use super::message::*;
use crate::inflight;
use crate::memory::RegionSpec;

/// Descriptors in tests are numbers.
type Decoded = Result<Message<u32>, MessageError>;

fn header(code: u32, flags: u32, size: u32) -> [u8; HEADER_BYTES] {
    words(&[code, flags, size]).try_into().unwrap()
}

fn decode_with(code: u32, payload: &[u8], fds: usize) -> Decoded {
    let size = u32::try_from(payload.len()).unwrap();
    let header = Header::parse(header(code, 1, size))?;
    decode(header, payload, (0..u32::try_from(fds).unwrap()).collect())
}

fn longs(values: &[u64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect()
}

fn region(first: u64) -> RegionSpec {
    RegionSpec {
        guest_address: first,
        bytes: first + 1,
        user_address: first + 2,
        file_offset: first + 3,
    }
}

fn state(value: u32) -> VringState {
    VringState { index: 3, value }
}

fn inflight(padded: bool) -> Inflight {
    let spec = inflight::RegionSpec {
        bytes: 5,
        offset: 6,
        queues: 7,
        queue_size: 8,
    };
    Inflight { spec, padded }
}

fn inflight_bytes() -> Vec<u8> {
    [longs(&[5, 6]), vec![7, 0, 8, 0]].concat()
}

fn range(len: u32) -> ConfigRange {
    ConfigRange {
        offset: 32,
        len,
        flags: 1,
    }
}

/// Every message that is offered: code, payload, number of descriptors, meaning.
fn messages() -> Vec<(u32, Vec<u8>, usize, Message<u32>)> {
    let table = [words(&[2, 0]), longs(&[10, 11, 12, 13, 20, 21, 22, 23])].concat();
    let addresses = [words(&[3, 0]), longs(&[0x10, 0x24, 0x32, 9])].concat();
    let padded = longs(&[99, 10, 11, 12, 13]);
    let address = VringAddr {
        index: 3,
        table: 0x10,
        used: 0x24,
        avail: 0x32,
    };
    vec![
        (1, vec![], 0, Message::GetFeatures),
        (2, longs(&[1 << 40]), 0, Message::SetFeatures(1 << 40)),
        (3, vec![], 0, Message::SetOwner),
        (4, vec![], 0, Message::ResetOwner),
        (
            5,
            table,
            2,
            Message::SetMemTable(vec![(region(10), 0), (region(20), 1)]),
        ),
        (8, words(&[3, 128]), 0, Message::SetVringNum(state(128))),
        (9, addresses, 0, Message::SetVringAddr(address)),
        (10, words(&[3, 9]), 0, Message::SetVringBase(state(9))),
        (11, words(&[3, 9]), 0, Message::GetVringBase(3)),
        (45, words(&[3, 0]), 0, Message::GetVringBaseSkipDrain(3)),
        (12, longs(&[3]), 1, Message::SetVringKick(3, Some(0))),
        (13, longs(&[255]), 1, Message::SetVringCall(255, Some(0))),
        (14, longs(&[0x103]), 0, Message::SetVringErr(3, None)),
        (15, vec![], 0, Message::GetProtocolFeatures),
        (16, longs(&[8]), 0, Message::SetProtocolFeatures(8)),
        (17, vec![], 0, Message::GetQueueNum),
        (18, words(&[3, 1]), 0, Message::SetVringEnable(3, true)),
        (18, words(&[3, 0]), 0, Message::SetVringEnable(3, false)),
        (21, vec![], 1, Message::SetBackendReqFd(0)),
        (24, words(&[32, 4, 1, 0]), 0, Message::GetConfig(range(4))),
        (
            25,
            words(&[32, 4, 1, 7]),
            0,
            Message::SetConfig(range(4), words(&[7])),
        ),
        (
            31,
            inflight_bytes(),
            0,
            Message::GetInflightFd(inflight(false)),
        ),
        (
            32,
            inflight_bytes(),
            1,
            Message::SetInflightFd(inflight(false), 0),
        ),
        (36, vec![], 0, Message::GetMaxMemSlots),
        (37, padded.clone(), 1, Message::AddMemReg(region(10), 0)),
        (38, padded, 0, Message::RemMemReg(region(10))),
        (39, longs(&[0xff]), 0, Message::SetStatus(0xff)),
        (40, vec![], 0, Message::GetStatus),
    ]
}

#[test]
fn every_message_has_its_size_and_its_descriptors() {
    for (code, payload, fds, message) in messages() {
        let name = Code(code);
        assert_eq!(decode_with(code, &payload, fds), Ok(message), "{name}");

        let longer = [payload.clone(), vec![0]].concat();
        let mut wrong = vec![longer];
        wrong.extend((0..payload.len()).map(|size| payload[..size].to_vec()));
        for wrong in wrong {
            let header_only = code == 24 && wrong.len() == CONFIG_HEADER_BYTES;
            let error = decode_with(code, &wrong, fds);
            assert_eq!(error.is_ok(), header_only, "{name}: {wrong:?}: {error:?}");
            if let Err(error) = error {
                let size = wrong.len();
                assert_eq!(error, MessageError::Size { code: name, size });
            }
        }

        for wrong in (0..=FDS_MAX).filter(|&count| count != fds) {
            // A descriptor that old front ends send with REM_MEM_REG.
            let tolerated = code == 38 && wrong == 1;
            let found = decode_with(code, &payload, wrong);
            match found {
                Err(MessageError::Fds { found, .. }) => assert_eq!(found, wrong),
                other => assert!(tolerated && other.is_ok(), "{name} with {wrong}: {other:?}"),
            }
        }
    }
}

#[test]
fn both_layouts_of_inflight() {
    let padded = [inflight_bytes(), vec![1, 2, 3, 4]].concat();
    assert_eq!(
        decode_with(31, &padded, 0),
        Ok(Message::GetInflightFd(inflight(true)))
    );
    assert_eq!(
        decode_with(32, &padded, 1),
        Ok(Message::SetInflightFd(inflight(true), 0))
    );
    for len in 21..24 {
        assert!(decode_with(31, &padded[..len], 0).is_err());
    }
}

#[test]
fn values_without_meaning() {
    let vring_addr = |flags: u32, table: u64, used: u64, avail: u64| {
        [words(&[0, flags]), longs(&[table, used, avail, 0])].concat()
    };
    let mem_table = |count: u32| [words(&[count, 0]), vec![0; 32]].concat();
    let cases: Vec<(u32, Vec<u8>, &str, u64)> = vec![
        (18, words(&[0, 2]), "state", 2),
        (9, vring_addr(1, 0, 0, 0), "flags", 1),
        (9, vring_addr(0, 8, 0, 0), "descriptor table", 8),
        (9, vring_addr(0, 0, 2, 0), "used ring", 2),
        (9, vring_addr(0, 0, 0, 1), "available ring", 1),
        (12, longs(&[0x200]), "value", 0x200),
        (5, mem_table(0), "number of regions", 0),
        (5, mem_table(9), "number of regions", 9),
        (5, mem_table(u32::MAX), "number of regions", u32::MAX.into()),
        (24, words(&[0, 257, 0]), "size", 257),
        (25, words(&[0, u32::MAX, 0]), "size", u32::MAX.into()),
        (
            31,
            [longs(&[0, 0]), vec![0; 4]].concat(),
            "number or size of queues",
            0,
        ),
    ];
    for (code, payload, field, value) in cases {
        let code = Code(code);
        assert_eq!(
            decode_with(code.0, &payload, 0),
            Err(MessageError::Value { code, field, value })
        );
    }
}

#[test]
fn headers() {
    let parse = |code, flags, size| Header::parse(header(code, flags, size));
    let good = Header {
        code: Code(1),
        need_reply: false,
        size: 268,
    };
    assert_eq!(parse(1, 1, 268), Ok(good));
    assert_eq!(
        parse(1, 9, 268),
        Ok(Header {
            need_reply: true,
            ..good
        })
    );
    for flags in [0, 2, 3, 5, 0x11, 0x8000_0001, u32::MAX] {
        let code = Code(1);
        assert_eq!(parse(1, flags, 0), Err(MessageError::Flags { code, flags }));
    }
    for size in [269, u32::MAX] {
        let code = Code(7);
        assert_eq!(parse(7, 1, size), Err(MessageError::TooLong { code, size }));
    }
}

#[test]
fn what_is_not_offered_has_a_name() {
    let offered: Vec<_> = messages().iter().map(|(code, ..)| *code).collect();
    for code in (0..100)
        .chain([u32::MAX])
        .filter(|code| !offered.contains(code))
    {
        let code = Code(code);
        assert_eq!(
            decode_with(code.0, &[0; 16], 2),
            Err(MessageError::NotOffered { code })
        );
    }
    for (code, name) in [
        (1, "GET_FEATURES"),
        (24, "GET_CONFIG"),
        (39, "SET_STATUS"),
        (44, "GET_SHMEM_CONFIG"),
        (45, "GET_VRING_BASE_SKIP_DRAIN"),
        (0, "message 0"),
        (46, "message 46"),
    ] {
        assert_eq!(Code(code).to_string(), name);
    }
}

fn encoded(code: u32, flags: u32, answer: Answer<u32>) -> Option<(Vec<u8>, Option<u32>)> {
    answer.encode(Header::parse(header(code, flags, 0)).unwrap())
}

#[test]
fn answers() {
    let reply = |code: u32, payload: Vec<u8>| {
        let size = u32::try_from(payload.len()).unwrap();
        [words(&[code, 5, size]), payload].concat()
    };
    assert_eq!(encoded(2, 1, Answer::Done), None);
    assert_eq!(
        encoded(2, 9, Answer::Done),
        Some((reply(2, longs(&[0])), None))
    );
    for flags in [1, 9] {
        let cases = [
            (1, Answer::Number(1 << 40), longs(&[1 << 40])),
            (11, Answer::VringBase(state(9)), words(&[3, 9])),
            (
                24,
                Answer::Config(range(2), vec![7, 8]),
                [words(&[32, 2, 1]), vec![7, 8]].concat(),
            ),
        ];
        for (code, answer, payload) in cases {
            assert_eq!(
                encoded(code, flags, answer),
                Some((reply(code, payload), None))
            );
        }
    }
    for (padded, padding) in [(false, 0), (true, 4)] {
        let payload = [inflight_bytes(), vec![0; padding]].concat();
        let answer = Answer::Inflight(inflight(padded), 6);
        assert_eq!(encoded(31, 1, answer), Some((reply(31, payload), Some(6))));
    }
    assert_eq!(config_change().to_vec(), words(&[2, 1, 0]));
}

/// A refusal must not be taken for the answer that was asked for.
#[test]
fn refusals() {
    for (code, ..) in messages() {
        let parsed = |flags| Header::parse(header(code, flags, 0)).unwrap();
        assert_eq!(refusal(parsed(1)), None);
        let expected = [words(&[code, 5, 8]), longs(&[1])].concat();
        let asks = [1, 11, 15, 17, 24, 31, 36, 40, 45].contains(&code);
        assert_eq!(refusal(parsed(9)), (!asks).then_some(expected), "{code}");
    }
}

mod random {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn anything_is_decoded_or_refused(
            code in 0..48_u32,
            payload in proptest::collection::vec(any::<u8>(), 0..=PAYLOAD_BYTES_MAX),
            fds in 0..=FDS_MAX,
        ) {
            match decode_with(code, &payload, fds) {
                Ok(Message::SetMemTable(regions)) => prop_assert_eq!(regions.len(), fds),
                Ok(Message::SetConfig(range, bytes)) => {
                    prop_assert_eq!(u32::try_from(bytes.len()).unwrap(), range.len);
                }
                Ok(_) => {}
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}
