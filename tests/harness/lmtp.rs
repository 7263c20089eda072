//! An LMTP client.

use std::io::Result;
use std::net::SocketAddr;

use super::wire::Wire;

/// One connection, greeted.
pub struct Lmtp {
    wire: Wire,
}

/// A reply: the three digits and the whole text.
pub type Answer = (u16, String);

impl Lmtp {
    /// Connects; an error when the server goes away before it said hello.
    pub(super) fn connect(address: SocketAddr) -> Result<Lmtp> {
        let mut client = Lmtp {
            wire: Wire::connect(address)?,
        };
        let greeting = client.answer()?;
        assert_eq!(greeting.0, 220, "{greeting:?}");
        let hello = client.cmd("LHLO test.example.org")?;
        assert_eq!(hello.0, 250, "{hello:?}");
        Ok(client)
    }

    /// Delivers to each recipient; one answer for each, whether refused at RCPT or after DATA.
    pub fn deliver(&mut self, recipients: &[&str], message: &[u8]) -> Vec<Answer> {
        self.try_deliver(recipients, message)
            .expect("the connection holds")
    }

    /// The same, reporting a lost connection.
    pub fn try_deliver(&mut self, recipients: &[&str], message: &[u8]) -> Result<Vec<Answer>> {
        let mail = self.cmd("MAIL FROM:<sender@example.org>")?;
        assert_eq!(mail.0, 250, "{mail:?}");
        let mut answers = Vec::new();
        for recipient in recipients {
            answers.push(self.cmd(&format!("RCPT TO:<{recipient}>"))?);
        }
        if answers.iter().all(|answer| answer.0 >= 300) {
            self.cmd("RSET")?;
            return Ok(answers);
        }
        let data = self.cmd("DATA")?;
        assert_eq!(data.0, 354, "{data:?}");
        self.wire.send(&dotted(message))?;
        for answer in answers.iter_mut().filter(|answer| answer.0 < 300) {
            *answer = self.answer()?;
        }
        Ok(answers)
    }

    /// Sends a line and reads its answer.
    pub fn cmd(&mut self, line: &str) -> Result<Answer> {
        self.wire.send(format!("{line}\r\n").as_bytes())?;
        self.answer()
    }

    /// Sends a whole delivery up to the final dot, whose answers [`Lmtp::answer`] reads.
    pub fn start(&mut self, recipients: &[&str], message: &[u8]) {
        let mut steps = vec!["MAIL FROM:<sender@example.org>".to_owned()];
        steps.extend(recipients.iter().map(|r| format!("RCPT TO:<{r}>")));
        steps.push("DATA".into());
        for step in steps {
            let answer = self.cmd(&step).expect("an answer");
            assert!(answer.0 < 400, "{step}: {answer:?}");
        }
        self.wire
            .send(&dotted(message))
            .expect("the connection holds");
    }

    /// Reads one answer, which may have several lines.
    pub fn answer(&mut self) -> Result<Answer> {
        let mut text = String::new();
        loop {
            let line = self
                .wire
                .read_line()?
                .ok_or(std::io::ErrorKind::UnexpectedEof)?;
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            let code = line.get(..3).and_then(|c| c.parse().ok()).unwrap_or(0);
            text.push_str(line.get(4..).unwrap_or(""));
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok((code, text));
            }
            text.push('\n');
        }
    }

    /// Whether an answer has arrived.
    pub fn has_answer(&mut self) -> bool {
        self.wire.has_line().unwrap_or(true)
    }
}

/// A message as DATA wants it: CRLF at the end, dots doubled, the final dot.
fn dotted(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 16);
    for line in message.split_inclusive(|&b| b == b'\n') {
        if line.starts_with(b".") {
            out.push(b'.');
        }
        out.extend_from_slice(line);
    }
    if !out.ends_with(b"\n") {
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b".\r\n");
    out
}
