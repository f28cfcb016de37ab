//! How an agent's messages are read. Before it: gRPC's frames, which end a message that has too many bytes. After it: the
//! methods of [`super::ReportsService`]. It counts a message's parts before it makes anything of them, because a part of
//! two bytes takes up to 176 once it is read. It never reads what is compressed.

use bytes::Buf as _;
use prost::Message;
use std::marker::PhantomData;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// What a message may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) bytes: usize,
    /// Fields, with those of the messages in `nested` fields.
    pub(super) parts: usize,
    /// Numbers of fields.
    pub(super) nested: &'static [usize],
}

/// 150 results and problems, the scalars beside them, and as much again for those who add fields. Read, its parts take
/// 90 KiB beside its bytes; with its buffer, what grows, and the JSON that is made of it less than 3 MiB.
pub(super) const REPORT: Bounds = Bounds { bytes: 256 << 10, parts: 512, nested: &[2, 3] };
/// An agent aims at half the bytes, and at 1,000 entries and as many keys that are gone. Read, its parts take 230 KiB
/// beside its bytes; with its buffer, what grows, and the JSON that is written anew (numbers may get longer) less than
/// 4 MiB.
pub(super) const UPDATE: Bounds = Bounds { bytes: 512 << 10, parts: 4_096, nested: &[] };

/// A message of an agent.
#[derive(Debug)]
pub(super) struct Told<M> {
    pub(super) message: M,
    /// As it came.
    pub(super) bytes: usize,
}

/// Reads `M` within bounds and answers with `R`.
pub(super) struct Counted<M, R>(Bounds, PhantomData<fn(R) -> M>);

impl<M, R> Counted<M, R> {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self(bounds, PhantomData)
    }
}

impl<M, R> Codec for Counted<M, R>
where
    M: Message + Default + 'static,
    R: Message + 'static,
{
    type Encode = R;
    type Decode = Told<M>;
    type Encoder = Answers<R>;
    type Decoder = Counting<M>;

    fn encoder(&mut self) -> Answers<R> {
        Answers(PhantomData)
    }

    fn decoder(&mut self) -> Counting<M> {
        Counting(self.0, PhantomData)
    }
}

pub(super) struct Answers<R>(PhantomData<fn(R)>);

impl<R: Message> Encoder for Answers<R> {
    type Item = R;
    type Error = Status;

    fn encode(&mut self, answer: R, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        answer.encode(to).map_err(|error| Status::internal(error.to_string()))
    }
}

pub(super) struct Counting<M>(Bounds, PhantomData<fn() -> M>);

impl<M: Message + Default> Decoder for Counting<M> {
    type Item = Told<M>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Told<M>>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        self.0.check(&bytes)?;
        let length = bytes.len();
        let message = M::decode(bytes).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Some(Told { message, bytes: length }))
    }
}

impl Bounds {
    fn check(&self, message: &[u8]) -> Result<(), Status> {
        let mut room = self.parts;
        match count(message, self.nested, &mut room) {
            Ok(()) => Ok(()),
            Err(Uncounted::Many) => Err(Status::out_of_range(format!(
                "the message has more than {} parts; send less at once",
                self.parts
            ))),
            Err(Uncounted::Malformed) => Err(Status::invalid_argument("what came is no message of protobuf")),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Uncounted {
    Many,
    Malformed,
}

/// Takes one from `room` for each field, and for each of those in `nested` ones. What it lets pass is what is read: prost
/// reads the same fields in the same order, and all it makes of an unknown one is to skip it.
fn count(mut message: &[u8], nested: &[usize], room: &mut usize) -> Result<(), Uncounted> {
    fn number(message: &mut &[u8]) -> Result<usize, Uncounted> {
        prost::decode_length_delimiter(message).map_err(|_| Uncounted::Malformed)
    }
    while !message.is_empty() {
        *room = room.checked_sub(1).ok_or(Uncounted::Many)?;
        let key = number(&mut message)?;
        let length = match key & 7 {
            0 => number(&mut message).map(|_| 0)?,
            1 => 8,
            2 => number(&mut message)?,
            5 => 4,
            // Groups, which no version of ours has.
            _ => return Err(Uncounted::Malformed),
        };
        let (field, rest) = message.split_at_checked(length).ok_or(Uncounted::Malformed)?;
        if key & 7 == 2 && nested.contains(&(key >> 3)) {
            count(field, &[], room)?;
        }
        message = rest;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_wire::proto::postern::agent::{
        ConfigurationReport, GitopsReport, ObjectReport, Problem, ReportRequest, ViewEntry, ViewUpdate,
        report_request::About,
    };

    fn gitops(results: usize, problems: usize) -> ReportRequest {
        let report = GitopsReport {
            project: "p".to_owned(),
            project_id: -1,
            results: vec![ObjectReport::default(); results],
            problems: vec![Problem::default(); problems],
            ..GitopsReport::default()
        };
        ReportRequest { pod_name: "agent-0".to_owned(), about: Some(About::Gitops(report)) }
    }

    fn configuration(problems: usize) -> ReportRequest {
        let problems = vec![Problem::default(); problems];
        let report = ConfigurationReport { problems, ..ConfigurationReport::default() };
        ReportRequest { about: Some(About::Configuration(report)), ..ReportRequest::default() }
    }

    fn update(entries: usize, gone: usize) -> ViewUpdate {
        let (entries, gone) = (vec![ViewEntry::default(); entries], vec![String::new(); gone]);
        ViewUpdate { view: "nodes".to_owned(), whole: true, entries, gone, ..ViewUpdate::default() }
    }

    #[test]
    fn parts_are_counted_wherever_a_message_repeats_them() {
        let counted = |bounds: Bounds, message: Vec<u8>| {
            let mut room = usize::MAX;
            count(&message, bounds.nested, &mut room).unwrap();
            usize::MAX - room
        };
        for (message, wanted) in
            [(gitops(100, 50), 154), (configuration(7), 8), (ReportRequest::default(), 0)]
        {
            assert_eq!(counted(REPORT, message.encode_to_vec()), wanted, "{message:?}");
        }
        assert_eq!(counted(UPDATE, update(1_000, 1_000).encode_to_vec()), 2_002);
        // Protobuf puts together what comes in two parts.
        let twice = [configuration(300).encode_to_vec(), configuration(300).encode_to_vec()].concat();
        assert_eq!(counted(REPORT, twice), 602);
    }

    #[test]
    fn what_is_too_much_or_malformed_is_refused_before_it_is_read() {
        let (many, malformed) = (Some(tonic::Code::OutOfRange), Some(tonic::Code::InvalidArgument));
        for (what, bounds, message, wanted) in [
            ("results and problems", REPORT, gitops(100, 50).encode_to_vec(), None),
            ("results", REPORT, gitops(600, 0).encode_to_vec(), many),
            ("problems", REPORT, gitops(0, 600).encode_to_vec(), many),
            ("problems of a configuration", REPORT, configuration(600).encode_to_vec(), many),
            ("a full message of views", UPDATE, update(1_001, 1_001).encode_to_vec(), None),
            ("entries", UPDATE, update(5_000, 0).encode_to_vec(), many),
            ("gone", UPDATE, update(0, 5_000).encode_to_vec(), many),
            ("unknown fields", UPDATE, [0x78, 1].repeat(5_000), many),
            ("fixed fields", UPDATE, [vec![0x79; 9], vec![0x7d; 5]].concat(), None),
            ("a group", UPDATE, vec![0x7b, 0x7c], malformed),
            ("a length beyond the end", UPDATE, vec![0x22, 5, 0], malformed),
            ("half a fixed field", UPDATE, vec![0x79, 0], malformed),
            ("a number without an end", UPDATE, vec![0xff; 20], malformed),
            ("a length of all there is", UPDATE, [vec![0x22], vec![0xff; 9], vec![1]].concat(), malformed),
        ] {
            assert_eq!(bounds.check(&message).err().map(|status| status.code()), wanted, "{what}");
        }
    }
}
