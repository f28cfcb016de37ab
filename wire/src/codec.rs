//! How messages of the generated clients and servers become bytes: as prost has it, in buffers for streams that mostly
//! wait. Named by the generated code; below it is tonic.

use prost::Message;
use std::marker::PhantomData;
use tonic::codec::{self, BufferSettings};
use tonic_prost::ProstCodec;

/// What a stream holds before its first message, for each direction, in bytes. Tonic's own are 8 KiB: an agent with
/// hundreds of tunnels that wait would hold megabytes of nothing. Larger messages are allocated as large as they are.
const BUFFER: usize = 128;
/// Messages that are there at once are sent together up to so many bytes; as tonic has it.
const TOGETHER: usize = 32 * 1024;

/// Protocol buffers, `T` out and `U` in.
#[derive(Clone, Debug)]
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as codec::Codec>::Encoder;
    type Decoder = <ProstCodec<T, U> as codec::Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, TOGETHER))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, TOGETHER))
    }
}
