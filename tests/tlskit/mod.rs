//! Certificates, made anew for each test.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};

/// A certification authority, and a directory for what it signs.
pub struct Authority {
    dir: PathBuf,
    name: String,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// The files of a certificate.
#[derive(Clone)]
pub struct Files {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// When a certificate holds.
#[derive(Clone, Copy, PartialEq)]
pub enum Valid {
    Now,
    Once,
    Later,
}

impl Authority {
    pub fn new(dir: &Path, name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let authority = Authority {
            dir: dir.to_path_buf(),
            name: name.to_string(),
            pem,
            issuer: Issuer::new(params, key),
        };
        std::fs::write(authority.file(), &authority.pem).unwrap();
        authority
    }

    /// Its own certificate.
    pub fn file(&self) -> PathBuf {
        self.dir.join(format!("{}.ca.pem", self.name))
    }

    /// A certificate for `host`, good for servers and clients.
    pub fn sign(&self, host: &str, valid: Valid) -> Files {
        let mut params = CertificateParams::new(vec![host.to_string()]).unwrap();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        match valid {
            Valid::Now => {}
            Valid::Once => params.not_after = date_time_ymd(2020, 1, 1),
            Valid::Later => params.not_before = date_time_ymd(3000, 1, 1),
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let base = format!("{}.{host}.{}", self.name, valid as u8);
        let files = Files {
            cert: self.dir.join(format!("{base}.pem")),
            key: self.dir.join(format!("{base}.key")),
        };
        std::fs::write(&files.cert, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }
}
