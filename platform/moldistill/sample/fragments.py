"""Fragments that the sample's molecules are assembled from: plain SMILES over C N O F S Cl.

Every atom that carries a hydrogen can take the next fragment, by a single bond. `*` marks the atom by which a chain or
an end is attached itself; a ring is attached by any of its atoms that carry a hydrogen.
"""

from __future__ import annotations


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


AROMATIC_RINGS = _listed("""
c1ccccc1 c1ccncc1 c1cncnc1 c1cnccn1 c1ccnnc1 c1ccoc1 c1ccsc1 c1cc[nH]c1 c1c[nH]cn1 c1cocn1 c1cscn1 c1cnoc1 c1cn[nH]c1
c1nc[nH]n1 c1nnco1 c1nncs1 c1cn[nH]n1 c1nonc1 c1ccc2[nH]ccc2c1 c1ccc2occc2c1 c1ccc2sccc2c1 c1ccc2[nH]cnc2c1
c1ccc2ocnc2c1 c1ccc2scnc2c1 c1ccc2ncccc2c1 c1ccc2cnccc2c1 c1ccc2ccccc2c1 c1cnc2ccccc2n1 c1ccn2ccnc2c1 c1ncc2nc[nH]c2n1
c1ccc2c(c1)[nH]c1ccccc12 c1ccc2c(c1)OCO2 c1cc[n+]([O-])cc1 c1ccc2cccc-2cc1 O=c1cccc[nH]1 O=c1cccco1
O=c1cc[nH]c(=O)[nH]1 O=c1ccc2ccccc2o1 O=c1ccoc2ccccc12 S=c1cccc[nH]1 O=C1NC(=O)c2ccccc12
""")

OTHER_RINGS = _listed("""
C1CC1 C1CCC1 C1CCCC1 C1CCCCC1 C1CCCCCC1 C1CO1 C1COC1 C1CCOC1 C1CCOCC1 C1CNC1 C1CCNC1 C1CCNCC1 C1COCCN1 C1CNCCN1 C1CCSC1
C1CCSCC1 C1OCCO1 C1OCCCO1 C1=CCCCC1 C1=CCCC1 O=C1C=CCCC1 O=C1C=CCC1 O=C1CCCCC1 O=C1CCCC1 O=C1CCCN1 O=C1CCCO1
O=C1CCC(=O)N1 O=C1C=CC(=O)N1 O=C1C=CC(=O)C=C1 O=C1CNC(=O)N1 O=C1CSC(=O)N1 O=C1CCCCN1 C1CC2CCC1C2 C1CC2CCC1CC2
C1C2CC1C2 C1CC12CCC2 C1CC2(C1)COC2 C1Cc2ccccc2N1 C1CCc2ccccc2C1 C1Cc2ccccc2O1 O=C1Cc2ccccc2N1 C1=CC2CCC1C2
N1C=CC=CC1 C1=CCC=C1 O1C=CCCC1 C1=NCCS1 C1=NCCO1 C1CN=CN1 O=S1(=O)CCCC1 C1SCCS1
""")

CHAINS = _listed("""
*CC *CCC *C=C *C#C *CC=C *C=CC=C *C#CC=C *C=CC=O *C=CC(C)=O *C(=O)C=C *C=CC#N *C=C[N+](=O)[O-] *C(C)C
*C(C)(C)C *CCO *CCN *CCS *COC *CSC *CNC *CN(C)C *C(=O)C *CC(C)=O *C(=O)NC *NC(C)=O *C(=O)OC *OC(C)=O *C(=S)NC
*NC(C)=S *NC(=O)NC *NC(=S)NC *NC(=N)N *C(=N)N *OC(=O)NC *NC(=O)OC *S(=O)(=O)C *S(=O)C *S(=O)(=O)NC *CS(=O)(=O)C
*C=NO *C=NOC *C=NN *N=CC *C=NC *C(=O)C(=O)C *C(C)=NO *SC *SSC *OCC *NCC *N(C)C *OC=C *SC=C *C(=O)CC(C)=O
*C(=O)NN *C(=O)NO *C=[N+](C)[O-] *C(O)CO *C(F)(F)C *CC(F)(F)F *COCC *OCCO *C(=O)SC *C(O)C(=O)O *CC(=O)O *C(N)C(=O)O
*NCC(=O)O *CC(=O)N *C(C)=C *C(Cl)=C *C=CCl *C=CC
""")

PLAIN_CHAINS = _listed("""
*CC *CCC *C(C)C *C(C)(C)C *CC(C)C *CCO *OCC *COC *CCOC *OCCO *CCN *CN(C)C *NCC *N(C)C *C(C)O *C(=O)NC *NC(C)=O *C(=O)OC
*CC(=O)NC *OC(C)C *CC(F)(F)F *CCC#N
""")

ENDS = _listed("""
*C *F *Cl *O *N *S *C#N *C=O *OC *SC *NC *C(=O)O *C(N)=O *[N+](=O)[O-] *C(F)(F)F *OC(F)(F)F *N=C=O *N=C=S *SC#N *C(=S)N
*S(N)(=O)=O *S(C)(=O)=O *C(F)F *CCl *CO *CN *C(=O)F *OC(F)F *N(C)C *C(=O)Cl *N=[N+]=[N-]
""")

ZWITTERIONS = _listed("""
C[N+](C)(C)CC(=O)[O-] C[N+](C)(C)CCC(=O)[O-] C[N+](C)(C)CCS(=O)(=O)[O-] [NH3+]CC(=O)[O-] [NH3+]CCC(=O)[O-]
O=C([O-])c1cccc[nH+]1 C[n+]1cccc(C(=O)[O-])c1 O=C([O-])C1CCC[NH2+]1 C[n+]1cccc([O-])c1 C[N+](C)(C)[O-]
""")
