package outside

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azcertificates"
)

func certificatePolicy(issuer string) *azcertificates.CertificatePolicy {
	return &azcertificates.CertificatePolicy{
		IssuerParameters:          &azcertificates.IssuerParameters{Name: to.Ptr(issuer)},
		KeyProperties:             &azcertificates.KeyProperties{KeyType: to.Ptr(azcertificates.KeyTypeRSA), KeySize: to.Ptr(int32(2048)), Exportable: to.Ptr(true)},
		X509CertificateProperties: &azcertificates.X509CertificateProperties{Subject: to.Ptr("CN=www.contoso.com"), ValidityInMonths: to.Ptr(int32(12))},
	}
}

func TestAzcertificates(t *testing.T) {
	b := newVaultBench(t)
	b.becomeOfficer()
	ctx := t.Context()
	c, err := azcertificates.NewClient(b.url, b.cred, &azcertificates.ClientOptions{ClientOptions: b.opt})
	b.check(err)
	op, err := c.CreateCertificate(ctx, "web", azcertificates.CreateCertificateParameters{CertificatePolicy: certificatePolicy("Self")}, nil)
	b.check(err)
	if *op.Status != "inProgress" || len(op.CSR) == 0 {
		t.Errorf("operation: %+v", op.CertificateOperation)
	}
	for until := time.Now().Add(20 * time.Second); *op.Status == "inProgress" && time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
		got, err := c.GetCertificateOperation(ctx, "web", nil)
		b.check(err)
		op.CertificateOperation = got.CertificateOperation
	}
	if *op.Status != "completed" {
		t.Fatalf("operation: %s", *op.Status)
	}
	got, err := c.GetCertificate(ctx, "web", "", nil)
	b.check(err)
	leaf, err := x509.ParseCertificate(got.CER)
	b.check(err)
	if leaf.Subject.CommonName != "www.contoso.com" || len(got.X509Thumbprint) != 20 || got.KID.Name() != "web" || *got.Policy.KeyProperties.KeySize != 2048 {
		t.Errorf("certificate: %+v", got.Certificate)
	}
	secret, err := b.secrets().GetSecret(ctx, "web", "", nil)
	b.check(err)
	imported, err := c.ImportCertificate(ctx, "copy", azcertificates.ImportCertificateParameters{Base64EncodedCertificate: secret.Value}, nil)
	b.check(err)
	if !bytes.Equal(imported.CER, got.CER) {
		t.Error("another certificate was imported")
	}
	_, err = b.keys().DeleteKey(ctx, "web", nil)
	wantVaultError(t, "deleting a certificate's key", err, 403, "Forbidden")
	testMerge(b, c)
	testDeletedCertificate(b, c)
}

func testMerge(b *vaultBench, c *azcertificates.Client) {
	ctx := b.t.Context()
	op, err := c.CreateCertificate(ctx, "merged", azcertificates.CreateCertificateParameters{CertificatePolicy: certificatePolicy("Unknown")}, nil)
	b.check(err)
	csr, err := x509.ParseCertificateRequest(op.CSR)
	b.check(err)
	ca, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	b.check(err)
	template := &x509.Certificate{SerialNumber: big.NewInt(2), RawSubject: csr.RawSubject, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, &x509.Certificate{SerialNumber: big.NewInt(1)}, csr.PublicKey, ca)
	b.check(err)
	merged, err := c.MergeCertificate(ctx, "merged", azcertificates.MergeCertificateParameters{X509Certificates: [][]byte{der}}, nil)
	b.check(err)
	if !bytes.Equal(merged.CER, der) {
		b.t.Error("another certificate was merged")
	}
}

func testDeletedCertificate(b *vaultBench, c *azcertificates.Client) {
	t, ctx := b.t, b.t.Context()
	backup, err := c.BackupCertificate(ctx, "web", nil)
	b.check(err)
	_, err = c.DeleteCertificate(ctx, "web", nil)
	b.check(err)
	_, err = c.RecoverDeletedCertificate(ctx, "web", nil)
	b.check(err)
	_, err = c.UpdateCertificate(ctx, "web", "", azcertificates.UpdateCertificateParameters{CertificateAttributes: &azcertificates.CertificateAttributes{Enabled: to.Ptr(false)}}, nil)
	b.check(err)
	_, err = c.DeleteCertificate(ctx, "web", nil)
	b.check(err)
	_, err = c.PurgeDeletedCertificate(ctx, "web", nil)
	b.check(err)
	_, err = c.RestoreCertificate(ctx, azcertificates.RestoreCertificateParameters{CertificateBackup: backup.Value}, nil)
	b.check(err)
	n := 0
	for pager := c.NewListCertificatePropertiesPager(nil); pager.More(); {
		page, err := pager.NextPage(ctx)
		b.check(err)
		n += len(page.Value)
	}
	if n != 3 {
		t.Errorf("%d certificates", n)
	}
}
