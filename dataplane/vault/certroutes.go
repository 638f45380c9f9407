package vault

import (
	"net/http"

	"casemate.dev/resource"
)

const (
	certificateScope = "{resource}/certificates/{name}"
	importBody       = 1 << 20 // PKCS #12 with a chain, in base64
)

func (s *Service) certificateRows() []row {
	const read, create, update = "certificates/read", "certificates/create/action", "certificates/update/action"
	const one, pend = "/certificates/{name}", "/certificates/{name}/pending"
	item := objects(s, certificates, false, s.certificateItem)
	return []row{
		{"Certificates_Create", http.MethodPost, one + "/create", create, certificateScope, keyBody, s.createCertificate},
		{"Certificates_Import", http.MethodPost, one + "/import", "certificates/import/action", certificateScope, importBody, s.importCertificate},
		{"Certificates_List", http.MethodGet, "/certificates", read, vaultScope, -1, item},
		{"Certificates_ListVersions", http.MethodGet, one + "/versions", read, certificateScope, -1, versions(s, certificates, s.certificateVersionItem)},
		{"Certificates_GetCurrent", http.MethodGet, one, read, certificateScope, -1, s.getCertificate},
		{"Certificates_Get", http.MethodGet, one + "/{version}", read, certificateScope, -1, s.getCertificate},
		{"Certificates_UpdateCurrent", http.MethodPatch, one, update, certificateScope, keyBody, s.updateCertificate},
		{"Certificates_Update", http.MethodPatch, one + "/{version}", update, certificateScope, keyBody, s.updateCertificate},
		{"CertificatePolicy_Get", http.MethodGet, one + "/policy", read, certificateScope, -1, s.getCertificatePolicy},
		{"CertificatePolicy_Update", http.MethodPatch, one + "/policy", update, certificateScope, keyBody, s.setCertificatePolicy},
		{"CertificateOperation_Get", http.MethodGet, pend, read, certificateScope, -1, s.getPending},
		{"CertificateOperation_Update", http.MethodPatch, pend, update, certificateScope, noBody, s.updatePending},
		{"CertificateOperation_Delete", http.MethodDelete, pend, update, certificateScope, noBody, s.deletePending},
		{"Certificates_Merge", http.MethodPost, pend + "/merge", "certificates/create/action", certificateScope, importBody, s.mergeCertificate},
		{"Certificates_Delete", http.MethodDelete, one, "certificates/delete", certificateScope, noBody, s.deleteCertificate},
		{"Certificates_Backup", http.MethodPost, one + "/backup", "certificates/backup/action", certificateScope, noBody, s.backupObject(certificates)},
		{"Certificates_Restore", http.MethodPost, "/certificates/restore", "certificates/restore/action", vaultScope, restoreBody, s.restoreObject(certificates, s.showCertificate)},
		{"DeletedCertificates_List", http.MethodGet, "/deletedcertificates", read, vaultScope, -1, objects(s, certificates, true, s.certificateItem)},
		{"DeletedCertificates_Get", http.MethodGet, "/deletedcertificates/{name}", read, certificateScope, -1, s.getDeletedCertificate},
		{"DeletedCertificates_Recover", http.MethodPost, "/deletedcertificates/{name}/recover", "certificates/recover/action", certificateScope, noBody, s.recoverCertificate},
		{"DeletedCertificates_Purge", http.MethodDelete, "/deletedcertificates/{name}", "certificates/purge/action", certificateScope, noBody, s.purgeObject(certificates)},
	}
}

func (s *Service) deleteCertificate(w http.ResponseWriter, r *resource.Request) error {
	return s.moveCertificate(w, r, func(t target) (object, version, error) {
		return s.remove(r.Context(), t.vault, certificates, t.name)
	})
}

func (s *Service) recoverCertificate(w http.ResponseWriter, r *resource.Request) error {
	return s.moveCertificate(w, r, func(t target) (object, version, error) {
		return s.recover(r.Context(), t.vault, certificates, t.name)
	})
}

func (s *Service) getDeletedCertificate(w http.ResponseWriter, r *resource.Request) error {
	return s.moveCertificate(w, r, func(t target) (o object, v version, err error) {
		err = s.view(r.Context(), t.vault, func(h shelf) (err error) {
			o, v, err = h.deleted(certificates, t.name)
			return err
		})
		return o, v, err
	})
}

func (s *Service) moveCertificate(w http.ResponseWriter, r *resource.Request, move func(target) (object, version, error)) error {
	t, err := s.targetOf(r, certificates)
	if err != nil {
		return err
	}
	o, v, err := move(t)
	if err != nil {
		return err
	}
	return s.showCertificate(w, r, t.vault, entry{o, v})
}
