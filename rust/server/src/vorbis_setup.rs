//! What a Vorbis stream's setup header asks a decoder to hold, before one believes it
//! (Vorbis I specification, 3.2.1 and 4.2.4).
//!
//! A codebook of a hundred thousand vectors takes twenty bytes to claim, and a header may have 256.

/// Numbers in all codebooks of a stream; encoders in the field stay far below a million.
const MOST_NUMBERS: usize = 1 << 22;

/// What every header begins with: its type, then `vorbis`.
const MARK_BYTES: usize = 7;
const CODEBOOK_SYNC: u32 = 0x0056_4342;
/// The longest codeword, in bits.
const MOST_BITS: u32 = 32;

/// Checks that the codebooks of a setup header are of a size that a decoder can be given.
///
/// # Errors
/// What is wrong with them; meant for the client.
pub(crate) fn check(setup: &[u8]) -> Result<(), &'static str> {
    let numbers = Bits { bytes: setup.get(MARK_BYTES..).unwrap_or_default(), at: 0 }.codebooks();
    match numbers {
        Some(numbers) if numbers <= MOST_NUMBERS => Ok(()),
        Some(_) => Err("its codebooks are larger than any encoder's"),
        None => Err("its setup header is malformed"),
    }
}

/// Bits, the lowest of each byte first.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn bit(&mut self) -> Option<u32> {
        let byte = *self.bytes.get(self.at / 8)?;
        let bit = byte >> (self.at % 8) & 1;
        self.at += 1;
        Some(bit.into())
    }

    fn number(&mut self, bits: u32) -> Option<u32> {
        (0..bits).try_fold(0, |number, bit| Some(number | self.bit()? << bit))
    }

    fn skip(&mut self, bits: usize) -> Option<()> {
        self.at = self.at.checked_add(bits)?;
        (self.at <= 8 * self.bytes.len()).then_some(())
    }

    /// The numbers in all codebooks, as far as they are allowed; `None` for what is none.
    fn codebooks(&mut self) -> Option<usize> {
        let mut numbers = 0;
        for _ in 0..=self.number(8)? {
            numbers += self.codebook()?;
            // Those after one that is too large are not worth a look.
            if numbers > MOST_NUMBERS {
                break;
            }
        }
        Some(numbers)
    }

    fn codebook(&mut self) -> Option<usize> {
        if self.number(24)? != CODEBOOK_SYNC {
            return None;
        }
        let (dimensions, entries) = (self.number(16)?, self.number(24)?);
        let numbers = dimensions as usize * entries as usize;
        if numbers > MOST_NUMBERS {
            return Some(numbers);
        }
        self.codeword_lengths(entries)?;
        match self.number(4)? {
            0 => {}
            kind @ (1 | 2) => {
                self.skip(2 * 32)?;
                let value_bits = self.number(4)? as usize + 1;
                self.skip(1)?;
                let values = if kind == 1 { lattice_values(entries, dimensions) } else { numbers };
                self.skip(values * value_bits)?;
            }
            _ => return None,
        }
        Some(numbers)
    }

    fn codeword_lengths(&mut self, entries: u32) -> Option<()> {
        if self.bit()? == 0 {
            let sparse = self.bit()? == 1;
            for _ in 0..entries {
                if !sparse || self.bit()? == 1 {
                    self.skip(5)?;
                }
            }
            return Some(());
        }
        // How many there are of each length, from the shortest on.
        let mut length = self.number(5)? + 1;
        let mut left = entries;
        while left > 0 {
            let bits = u32::BITS - left.leading_zeros();
            left = left.checked_sub(self.number(bits)?).filter(|_| length <= MOST_BITS)?;
            length += 1;
        }
        Some(())
    }
}

/// The largest number whose `dimensions`-th power is at most `entries`.
fn lattice_values(entries: u32, dimensions: u32) -> usize {
    let fits = |value: u64| value.checked_pow(dimensions).is_some_and(|p| p <= entries.into());
    if dimensions == 0 {
        return 0;
    }
    (1..).take_while(|value| fits(*value)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes bits as [`Bits`] reads them.
    #[derive(Default)]
    struct Writer {
        bytes: Vec<u8>,
        bits: usize,
    }

    impl Writer {
        fn number(&mut self, bits: u32, number: u32) -> &mut Self {
            for bit in 0..bits {
                if self.bits.is_multiple_of(8) {
                    self.bytes.push(0);
                }
                self.bytes[self.bits / 8] |= ((number >> bit & 1) as u8) << (self.bits % 8);
                self.bits += 1;
            }
            self
        }

        /// A codebook of 2^`length` codewords of `length` bits with vectors of one value.
        fn codebook(&mut self, dimensions: u32, length: u32) -> &mut Self {
            let entries = 1 << length;
            self.number(24, CODEBOOK_SYNC).number(16, dimensions).number(24, entries);
            self.number(1, 1).number(5, length - 1).number(length + 1, entries);
            self.number(4, 1).number(32, 0).number(32, 0).number(4, 0).number(1, 0);
            self.number(lattice_values(entries, dimensions) as u32, 0)
        }
    }

    fn header(codebooks: u32, dimensions: u32, length: u32) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.number(8, codebooks - 1);
        (0..codebooks).for_each(|_| {
            writer.codebook(dimensions, length);
        });
        [b"\x05vorbis", writer.bytes.as_slice()].concat()
    }

    #[test]
    fn claims_of_gigabytes_are_refused() {
        for (codebooks, dimensions, length) in [(1, 2, 8), (40, 8, 10), (256, 1, 10), (1, 32, 17)] {
            assert_eq!(check(&header(codebooks, dimensions, length)), Ok(()));
        }
        // What a decoder that takes each codebook by itself would have made four gigabytes of.
        let bomb = header(256, 32, 17);
        assert!(bomb.len() < 8192);
        for large in [bomb, header(2, 32, 17), header(1, 65_535, 8)] {
            let error = check(&large).unwrap_err();
            assert!(error.contains("larger than any encoder's"), "{error}");
        }
    }

    #[test]
    fn headers_that_are_none_are_refused() {
        let whole = header(3, 4, 6);
        for length in 0..whole.len() - 1 {
            assert_eq!(check(&whole[..length]), Err("its setup header is malformed"), "{length}");
        }
        // Codewords that get longer than any can be.
        let mut endless = Writer::default();
        endless.number(8, 0).number(24, CODEBOOK_SYNC).number(16, 1).number(24, 4);
        endless.number(1, 1).number(5, 31).number(3, 0).number(3, 4).number(4, 0);
        let endless = [b"\x05vorbis", endless.bytes.as_slice()].concat();
        assert_eq!(check(&endless), Err("its setup header is malformed"));
    }

    #[test]
    fn lattices_have_whole_sides() {
        for (entries, dimensions, values) in
            [(81, 4, 3), (80, 4, 2), (1, 32, 1), (0, 3, 0), (6561, 8, 3), (7, 1, 7), (7, 0, 0)]
        {
            assert_eq!(lattice_values(entries, dimensions), values, "{entries}, {dimensions}");
        }
    }
}
