//! Gzip without compression (RFC 1952, stored blocks of RFC 1951): all that a coded reply needs.

/// `content` gzip-coded.
pub(super) fn gzip(content: &[u8]) -> Vec<u8> {
    let mut coded = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let blocks = content.chunks(usize::from(u16::MAX));
    for block in blocks {
        let length = u16::try_from(block.len()).expect("chunks are of at most that length");
        coded.push(0);
        coded.extend_from_slice(&length.to_le_bytes());
        coded.extend_from_slice(&(!length).to_le_bytes());
        coded.extend_from_slice(block);
    }
    // The last block is an empty one.
    coded.extend_from_slice(&[1, 0, 0, 255, 255]);
    coded.extend_from_slice(&crc32(content).to_le_bytes());
    let length = u32::try_from(content.len() % (1 << 32)).expect("reduced to 32 bits");
    coded.extend_from_slice(&length.to_le_bytes());
    coded
}

fn crc32(content: &[u8]) -> u32 {
    !content.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_known_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(gzip(b"").len(), 10 + 5 + 8);
    }
}
