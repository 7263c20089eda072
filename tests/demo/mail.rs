//! The mail of the demonstration.

/// An mbox file: each message begins with a line "From ", and a body line that would look like
/// one has a ">" before it.
const MBOX: &[u8] = include_bytes!("mail.mbox");
/// Bytes of the large message's attachment, before base64 makes them a third more.
const LARGE: usize = 225_000;

/// The messages of the mbox file, as they travel: lines end in CRLF.
pub fn messages() -> Vec<Vec<u8>> {
    let mut messages: Vec<Vec<u8>> = Vec::new();
    for line in MBOX.split_inclusive(|&b| b == b'\n') {
        if line.starts_with(b"From ") {
            messages.push(Vec::new());
        } else if let Some(message) = messages.last_mut() {
            push_line(message, unquoted(line));
        }
    }
    messages
}

/// A line without the ">" that protects a "From " in an mbox.
fn unquoted(line: &[u8]) -> &[u8] {
    let arrows = line.iter().take_while(|&&b| b == b'>').count();
    let quoted = arrows > 0 && line[arrows..].starts_with(b"From ");
    if quoted { &line[1..] } else { line }
}

fn push_line(message: &mut Vec<u8>, line: &[u8]) {
    message.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
    message.extend_from_slice(b"\r\n");
}

/// A message of about 300 kB: a picture that nobody can see anything in.
pub fn large() -> Vec<u8> {
    let mut text = String::from(
        "Date: Tue, 3 Mar 2026 11:12:13 +0000\r\nFrom: Ines <ines@fjord.example>\r\n\
         To: demo@demo.example\r\nSubject: The photo you asked for\r\n\
         Message-ID: <photo.1@fjord.example>\r\nMIME-Version: 1.0\r\n\
         Content-Type: image/x-raw; name=\"fog.raw\"\r\n\
         Content-Disposition: attachment; filename=\"fog.raw\"\r\n\
         Content-Transfer-Encoding: base64\r\n\r\n",
    );
    let mut noise: u32 = 1;
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for column in 0..LARGE / 3 * 4 {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        text.push(char::from(alphabet[(noise >> 26) as usize]));
        if column % 76 == 75 {
            text.push_str("\r\n");
        }
    }
    text.push_str("\r\n");
    text.into_bytes()
}

/// A short message of today.
pub fn news(subject: &str, body: &str) -> Vec<u8> {
    format!(
        "Date: Tue, 3 Mar 2026 12:00:00 +0000\r\nFrom: Ruth Okafor <ruth@shed.example>\r\n\
         To: demo@demo.example\r\nSubject: {subject}\r\n\
         Message-ID: <{}@shed.example>\r\n\r\n{body}\r\n",
        subject.replace(' ', ".").to_lowercase()
    )
    .into_bytes()
}
