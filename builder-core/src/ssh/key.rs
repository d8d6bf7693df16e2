//! Reading a private key, and signing with it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::rand::SystemRandom;
use ring::rsa::{self, KeyPair as RsaKeyPair};
use ring::signature::{
    self, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use ssh_key::private::{EcdsaKeypair, KeypairData, RsaKeypair};
use zeroize::Zeroizing;

use super::KeyError;

/// A private key. Neither `Debug` nor anything else shows it.
pub struct SshKey {
    signer: Signer,
    /// As the protocol names it.
    public: Vec<u8>,
    comment: String,
}

enum Signer {
    Ed25519(Ed25519KeyPair),
    Rsa(Box<RsaKeyPair>),
    Ecdsa(Curve, EcdsaKeyPair),
}

/// A curve of ECDSA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
}

impl Curve {
    const ALL: [Self; 2] = [Self::P256, Self::P384];

    fn name(self) -> &'static str {
        match self {
            Self::P256 => "nistp256",
            Self::P384 => "nistp384",
        }
    }

    fn algorithm(self) -> &'static signature::EcdsaSigningAlgorithm {
        match self {
            Self::P256 => &ECDSA_P256_SHA256_FIXED_SIGNING,
            Self::P384 => &ECDSA_P384_SHA384_FIXED_SIGNING,
        }
    }

    /// `AlgorithmIdentifier` of RFC 5480: id-ecPublicKey and the curve, in DER.
    fn identifier(self) -> &'static [u8] {
        const P256: &[u8] = b"\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
        const P384: &[u8] = b"\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22";
        match self {
            Self::P256 => P256,
            Self::P384 => P384,
        }
    }
}

/// Flags of a request to sign, draft-miller-ssh-agent, "Signature flags".
const RSA_SHA2_256: u32 = 2;
const RSA_SHA2_512: u32 = 4;

impl SshKey {
    /// Reads a key file's content.
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn parse(text: &[u8]) -> Result<Self, KeyError> {
        let text = std::str::from_utf8(text).map_err(|_| KeyError::NoKey)?;
        let (label, body) = pem(text).ok_or(KeyError::NoKey)?;
        if label == "OPENSSH PRIVATE KEY" {
            let key = Self::of_openssh(text);
            // Not all of these can be read (ssh-key 0.6), and none could sign.
            let p521 = key.as_ref().is_err_and(|error| *error == KeyError::Malformed)
                && decoded(body).is_ok_and(|bytes| bytes.windows(P521.len()).any(|part| part == P521.as_bytes()));
            return if p521 { Err(KeyError::Unsupported { kind: P521.to_owned() }) } else { key };
        }
        // RFC 1421, as OpenSSL still writes it for the old forms.
        if label == "ENCRYPTED PRIVATE KEY" || body.contains("ENCRYPTED") {
            return Err(KeyError::Encrypted);
        }
        let der = decoded(body)?;
        let signer = match label {
            "RSA PRIVATE KEY" => Signer::Rsa(Box::new(RsaKeyPair::from_der(&der).map_err(|error| of_rsa(&error))?)),
            "EC PRIVATE KEY" => of_sec1(&der)?,
            "PRIVATE KEY" => of_pkcs8(&der)?,
            "DSA PRIVATE KEY" => return Err(KeyError::Unsupported { kind: "ssh-dss".to_owned() }),
            _ => return Err(KeyError::NoKey),
        };
        Ok(Self::new(signer, String::new()))
    }

    fn of_openssh(text: &str) -> Result<Self, KeyError> {
        let key = ssh_key::PrivateKey::from_openssh(text.trim()).map_err(|_| KeyError::Malformed)?;
        let signer = match key.key_data() {
            _ if key.is_encrypted() => return Err(KeyError::Encrypted),
            KeypairData::Ed25519(pair) => {
                let pair = Ed25519KeyPair::from_seed_and_public_key(pair.private.as_ref(), &pair.public.0);
                Signer::Ed25519(pair.map_err(|_| KeyError::Malformed)?)
            }
            KeypairData::Rsa(pair) => Signer::Rsa(Box::new(of_numbers(pair)?)),
            KeypairData::Ecdsa(EcdsaKeypair::NistP256 { public, private }) => {
                of_point(Curve::P256, private.as_slice(), public.as_bytes())?
            }
            KeypairData::Ecdsa(EcdsaKeypair::NistP384 { public, private }) => {
                of_point(Curve::P384, private.as_slice(), public.as_bytes())?
            }
            _ => return Err(KeyError::Unsupported { kind: key.algorithm().as_str().to_owned() }),
        };
        Ok(Self::new(signer, key.comment().to_owned()))
    }

    fn new(signer: Signer, comment: String) -> Self {
        let mut public = Vec::new();
        match &signer {
            Signer::Ed25519(pair) => {
                put(&mut public, b"ssh-ed25519");
                put(&mut public, pair.public_key().as_ref());
            }
            Signer::Rsa(pair) => {
                let numbers = rsa::PublicKeyComponents::<Vec<u8>>::from(pair.public());
                put(&mut public, b"ssh-rsa");
                put_number(&mut public, &numbers.e);
                put_number(&mut public, &numbers.n);
            }
            Signer::Ecdsa(curve, pair) => {
                put(&mut public, format!("ecdsa-sha2-{}", curve.name()).as_bytes());
                put(&mut public, curve.name().as_bytes());
                put(&mut public, pair.public_key().as_ref());
            }
        }
        Self { signer, public, comment }
    }

    /// The public key as the protocol of ssh writes it (RFC 4253, section 6.6).
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// What the key's owner calls it; may be empty.
    pub fn comment(&self) -> &str {
        &self.comment
    }

    /// A signature as the protocol of ssh writes it. `None` for what cannot be had: RSA with SHA-1.
    pub fn sign(&self, data: &[u8], flags: u32) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        let mut signed = Vec::new();
        match &self.signer {
            Signer::Ed25519(pair) => {
                put(&mut signed, b"ssh-ed25519");
                put(&mut signed, pair.sign(data).as_ref());
            }
            Signer::Rsa(pair) => {
                let (name, padding): (&[u8], &dyn signature::RsaEncoding) = match flags {
                    flags if flags & RSA_SHA2_512 != 0 => (b"rsa-sha2-512", &signature::RSA_PKCS1_SHA512),
                    flags if flags & RSA_SHA2_256 != 0 => (b"rsa-sha2-256", &signature::RSA_PKCS1_SHA256),
                    _ => return None,
                };
                let mut bytes = vec![0; pair.public().modulus_len()];
                pair.sign(padding, &random, data, &mut bytes).ok()?;
                put(&mut signed, name);
                put(&mut signed, &bytes);
            }
            Signer::Ecdsa(curve, pair) => {
                let both = pair.sign(&random, data).ok()?;
                let (r, s) = both.as_ref().split_at(both.as_ref().len() / 2);
                let mut numbers = Vec::new();
                put_number(&mut numbers, r);
                put_number(&mut numbers, s);
                put(&mut signed, format!("ecdsa-sha2-{}", curve.name()).as_bytes());
                put(&mut signed, &numbers);
            }
        }
        Some(signed)
    }
}

impl fmt::Debug for SshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SshKey").field("public", &BASE64.encode(&self.public)).finish_non_exhaustive()
    }
}

/// Name of a kind of key, as keys themselves hold it.
const P521: &str = "ecdsa-sha2-nistp521";

fn decoded(body: &str) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let base64: Zeroizing<String> = Zeroizing::new(body.split_ascii_whitespace().collect());
    BASE64.decode(base64.as_bytes()).map(Zeroizing::new).map_err(|_| KeyError::Malformed)
}

/// Label and lines of the first PEM block (RFC 7468).
fn pem(text: &str) -> Option<(&str, &str)> {
    let (_, rest) = text.split_once("-----BEGIN ")?;
    let (label, rest) = rest.split_once("-----")?;
    let (body, end) = rest.split_once("-----END ")?;
    end.starts_with(label).then_some((label, body))
}

fn of_rsa(error: &ring::error::KeyRejected) -> KeyError {
    match error.to_string().as_str() {
        // What is said of sizes, as ring documents it.
        "TooSmall" | "TooLarge" => KeyError::Unsupported { kind: "ssh-rsa outside of 2048 to 4096 bits".to_owned() },
        _ => KeyError::Malformed,
    }
}

/// RFC 5915. The curve's name is in it or it is none of ours; ring wants to hear it outside, in PKCS #8.
fn of_sec1(der: &[u8]) -> Result<Signer, KeyError> {
    for curve in Curve::ALL {
        let mut inner = vec![2, 1, 0];
        inner.extend_from_slice(curve.identifier());
        inner.extend(element(4, der));
        let wrapped = Zeroizing::new(element(0x30, &inner));
        if let Some(signer) = of_curve(curve, &wrapped) {
            return Ok(signer);
        }
    }
    Err(KeyError::Unsupported { kind: "ecdsa over another curve than P-256 and P-384".to_owned() })
}

/// One element in DER (X.690).
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
    let head: &[u8] = match (high, low) {
        (0, 0..0x80) => &[tag, low],
        (0, _) => &[tag, 0x81, low],
        _ => &[tag, 0x82, high, low],
    };
    [head, content].concat()
}

fn of_pkcs8(der: &[u8]) -> Result<Signer, KeyError> {
    // Version 1 has no public key to compare with.
    if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
        return Ok(Signer::Ed25519(pair));
    }
    if let Some(signer) = Curve::ALL.into_iter().find_map(|curve| of_curve(curve, der)) {
        return Ok(signer);
    }
    match RsaKeyPair::from_pkcs8(der) {
        Ok(pair) => Ok(Signer::Rsa(Box::new(pair))),
        Err(error) => match of_rsa(&error) {
            KeyError::Malformed => Err(KeyError::Unsupported { kind: "this PKCS #8 file".to_owned() }),
            other => Err(other),
        },
    }
}

fn of_curve(curve: Curve, pkcs8: &[u8]) -> Option<Signer> {
    let pair = EcdsaKeyPair::from_pkcs8(curve.algorithm(), pkcs8, &SystemRandom::new()).ok()?;
    Some(Signer::Ecdsa(curve, pair))
}

fn of_point(curve: Curve, private: &[u8], public: &[u8]) -> Result<Signer, KeyError> {
    let pair = EcdsaKeyPair::from_private_key_and_public_key(curve.algorithm(), private, public, &SystemRandom::new());
    pair.map(|pair| Signer::Ecdsa(curve, pair)).map_err(|_| KeyError::Malformed)
}

/// OpenSSH leaves out what can be computed: d mod (p - 1) and d mod (q - 1).
fn of_numbers(pair: &RsaKeypair) -> Result<RsaKeyPair, KeyError> {
    let number = |number: &'_ ssh_key::Mpint| {
        number.as_positive_bytes().map(|bytes| Zeroizing::new(bytes.to_vec())).ok_or(KeyError::Malformed)
    };
    let (d, p, q) = (number(&pair.private.d)?, number(&pair.private.p)?, number(&pair.private.q)?);
    let components = rsa::KeyPairComponents {
        public_key: rsa::PublicKeyComponents { n: number(&pair.public.n)?, e: number(&pair.public.e)? },
        dP: remainder(&d, &less_one(&p)),
        dQ: remainder(&d, &less_one(&q)),
        qInv: number(&pair.private.iqmp)?,
        d,
        p,
        q,
    };
    RsaKeyPair::from_components(&components).map_err(|error| of_rsa(&error))
}

/// An odd number less one: big-endian.
fn less_one(number: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut number = Zeroizing::new(number.to_vec());
    if let Some(last) = number.last_mut() {
        *last &= !1;
    }
    number
}

/// `number` mod `divisor`, both big-endian, without leading zeros: bit by bit, as it is done once a key.
fn remainder(number: &[u8], divisor: &[u8]) -> Zeroizing<Vec<u8>> {
    // One byte more than the divisor: what is left is doubled before it is reduced.
    let mut rest = Zeroizing::new(vec![0_u8; divisor.len() + 1]);
    let mut reduced = Zeroizing::new(vec![0_u8; divisor.len() + 1]);
    for bit in number.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)) {
        let mut carry = bit;
        for byte in rest.iter_mut().rev() {
            (*byte, carry) = (*byte << 1 | carry, *byte >> 7);
        }
        let mut borrow = 0;
        for at in (0..rest.len()).rev() {
            let subtrahend = i16::from(if at == 0 { 0 } else { divisor[at - 1] });
            let difference = i16::from(rest[at]) - subtrahend - borrow;
            borrow = i16::from(difference < 0);
            reduced[at] = difference.rem_euclid(256) as u8;
        }
        if borrow == 0 {
            std::mem::swap(&mut *rest, &mut *reduced);
        }
    }
    let zeros = rest.iter().take_while(|byte| **byte == 0).count();
    Zeroizing::new(rest[zeros..].to_vec())
}

/// A string of the protocol: its length, then its bytes (RFC 4251, section 5).
pub(super) fn put(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    to.extend_from_slice(bytes);
}

/// A positive number of the protocol: no leading zeros but one before a set sign bit (RFC 4251, section 5).
fn put_number(to: &mut Vec<u8>, big_endian: &[u8]) {
    let zeros = big_endian.iter().take_while(|byte| **byte == 0).count();
    let digits = &big_endian[zeros..];
    let sign: &[u8] = if digits.first().is_some_and(|byte| byte & 0x80 != 0) { &[0] } else { &[] };
    put(to, &[sign, digits].concat());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remainders() {
        let check = |number: u64, divisor: u64| {
            let bytes =
                |number: u64| number.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect::<Vec<_>>();
            assert_eq!(*remainder(&bytes(number), &bytes(divisor)), bytes(number % divisor), "{number} % {divisor}");
        };
        for number in [0, 1, 255, 256, 65_537, 0xdead_beef_1234, u64::MAX] {
            for divisor in [1, 2, 3, 255, 256, 257, 65_536, 0xffff_ffff, 0x1_0000_0001, u64::MAX] {
                check(number, divisor);
            }
        }
    }

    #[test]
    fn numbers_of_the_protocol() {
        for (bytes, expected) in [
            (&[][..], &[0, 0, 0, 0][..]),
            (&[0, 0], &[0, 0, 0, 0]),
            (&[0, 0x7f], &[0, 0, 0, 1, 0x7f]),
            (&[0x80], &[0, 0, 0, 2, 0, 0x80]),
        ] {
            let mut put = Vec::new();
            put_number(&mut put, bytes);
            assert_eq!(put, expected, "{bytes:?}");
        }
    }

    #[test]
    fn what_is_no_key() {
        for (text, expected) in [
            ("", KeyError::NoKey),
            ("ssh-ed25519 AAAA me", KeyError::NoKey),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", KeyError::NoKey),
            ("-----BEGIN RSA PRIVATE KEY-----\nAAAA\n", KeyError::NoKey),
            ("-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n", KeyError::Malformed),
            ("-----BEGIN RSA PRIVATE KEY-----\n%%\n-----END RSA PRIVATE KEY-----\n", KeyError::Malformed),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n", KeyError::Malformed),
            (
                "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n\
                 -----END RSA PRIVATE KEY-----\n",
                KeyError::Encrypted,
            ),
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n", KeyError::Encrypted),
        ] {
            assert_eq!(SshKey::parse(text.as_bytes()).expect_err(text), expected, "{text}");
        }
        assert_eq!(SshKey::parse(&[0xff, 0xfe]).expect_err("bytes"), KeyError::NoKey);
    }
}
