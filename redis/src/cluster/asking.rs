//! A call to the node that a slot is moving to: that node answers only what is announced with ASKING. The words go out
//! together, as others use the same connection.

use ::redis::{
    Cmd, Pipeline, RedisFuture, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};

pub(in super::super) struct Asking(pub(in super::super) MultiplexedConnection);

impl ConnectionLike for Asking {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        let mut both = ::redis::pipe();
        both.cmd("ASKING").add_command(command.clone());
        Box::pin(async move {
            let mut answer = self.0.req_packed_commands(&both, 1, 1).await?;
            Ok(answer.pop().unwrap_or(Value::Nil))
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        let mut all = ::redis::pipe();
        let each = pipeline.cmd_iter().cloned();
        if pipeline.is_transaction() {
            // It is good for the whole transaction.
            all.cmd("ASKING").cmd("MULTI");
            for command in each {
                all.add_command(command);
            }
            all.cmd("EXEC");
            return Box::pin(async move {
                let answer = self.0.req_packed_commands(&all, 1 + offset, count).await?;
                // EXEC itself may be refused.
                answer
                    .into_iter()
                    .map(|value| match value {
                        Value::ServerError(_) => value.extract_error(),
                        value => Ok(value),
                    })
                    .collect()
            });
        }
        for command in each {
            all.cmd("ASKING").add_command(command);
        }
        Box::pin(async move {
            let answer = self.0.req_packed_commands(&all, 2 * offset, 2 * count).await?;
            Ok(answer.into_iter().skip(1).step_by(2).collect())
        })
    }

    fn get_db(&self) -> i64 {
        self.0.get_db()
    }
}
