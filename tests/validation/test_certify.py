"""The certificate is that of this code and of these measurements."""

from cost_models.certificate import MEND, certificate, code_digest
from validation.certify import data_digest


def test_code_measurements_and_certificate_agree():
    found = certificate()
    stale = [
        name
        for name, stated, now in (
            ("code", found.code, code_digest()),
            ("measurements", found.data, data_digest()),
        )
        if stated != now
    ]
    assert not stale, f"cost_models/certificate.json was made of other {', '.join(stale)}: {MEND}"
