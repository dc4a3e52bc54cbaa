-- A ledger of version 1: a job of eight pairs, two of them with the same texts; a run that was killed;
-- and one that booked what it had in flight, and was killed as well. From `sqlite3 LEDGER .dump`.
PRAGMA application_id = 1382380655;
PRAGMA user_version = 1;
PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE recipe (
  id     INTEGER PRIMARY KEY,
  digest BLOB NOT NULL UNIQUE,   -- SHA-256 of spec
  spec   TEXT NOT NULL           -- JSON
) STRICT;
INSERT INTO recipe VALUES(1,X'13934db367fc55b8a0945186b7aecbdbe9c802a480a9a82cfe8c1495a51362e7','{"dialect":"chat","extra":{},"grades":2,"kind":"graded","log_probabilities":true,"model":"scripted","prompt":"sha256:5d375e6580bee8ee0595cbe6e95b3d4271497ffcee939e3657fc81c8dd5db9c1","revision":"","teacher":"scripted","temperature":0.0,"text_treatment":1}');
INSERT INTO recipe VALUES(2,X'0707070707070707070707070707070707070707070707070707070707070707','{"grades":2,"kind":"graded","teacher":"another"}');
CREATE TABLE epoch (
  id       INTEGER PRIMARY KEY,
  recipe   INTEGER NOT NULL REFERENCES recipe (id),
  model    TEXT NOT NULL,        -- as the replies name it
  probe    TEXT,                 -- JSON: what the preflight found
  began_at TEXT NOT NULL
) STRICT;
INSERT INTO epoch VALUES(1,1,'scripted-1',NULL,'2026-11-26T18:39:12Z');
INSERT INTO epoch VALUES(2,2,'m','{"mass":1.0}','2026-11-26T18:39:13Z');
CREATE TABLE run (
  id              INTEGER PRIMARY KEY,
  began_at        TEXT NOT NULL,
  ended_at        TEXT,
  version         TEXT NOT NULL,
  at_risk_micros  INTEGER NOT NULL DEFAULT 0,
  at_risk_tokens  INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO run VALUES(1,'2026-11-26T18:39:12Z','2026-11-26T18:39:13Z','0.1.0',0,0);
INSERT INTO run VALUES(2,'2026-11-26T18:39:13Z','2026-11-26T18:39:13Z','0.1.0',0,0);
INSERT INTO run VALUES(3,'2026-11-26T18:39:13Z',NULL,'0.1.0',900,90);
CREATE TABLE reply (
  id   INTEGER PRIMARY KEY,
  zstd BLOB NOT NULL
) STRICT;
INSERT INTO reply VALUES(1,X'28b52ffd600e007d0500820b241e7035ce01b9a7450f1236eab54d2536fc16aafa1b45c4ee46835900543d21dd69f16bd47947c8be88d3c6c9bc66e0e8284824bfe6247b762613da1c1ddd574f05b19bcd511f7df493c148c5428504825aa88a6290501f5340f948a5844bad020d835a462a0c50c0fe1c90a7cc2ed969f2877d01d4798a32475f5871c99cdde922d241966dae05fc39b06f264d97e44f0a0035950aef1ea56e8ec19c056ce129e7b7600753a4fddcacb45550');
INSERT INTO reply VALUES(2,X'28b52ffd600e008d0500828b241e60b5ce013a3cc4cc6af69c0d8da2e91f54107c6c4cccf65aeb641000c0b931aaa2e1b3107cca7656deba56073e034f4fe2a00d1db4f0db1d3decf394c47876650cccfa3cc52426f16a501c8444905469a8b5d812a8149f2ab0fd742c831dac60834c0461044390447b5450e0763fedb7cba37606580832eb3cbd69e6a9f3f6b76c504869d83d17f0a8d0cebab86d9647010a0035950aef1ea56e8ec19c056ce129e7b7600753a4fddcacb45550');
INSERT INTO reply VALUES(3,X'28b52ffd20d565040052891c1a80c7394b59b16265777cad85f4d67794496129e05ec44c63848dddc480db52d78ec5f9224c13a76aab39be0028c92d39b43f57a9e83a1edd173c976437d7b18f3efae91a421e948f4480387f06d294992533457fe75b50d71655c733bcb0543f67ba493a84d9c492e1cf38df444919f41708003595387c8f5237b7890b4b089329d27e6e56da2a28');
INSERT INTO reply VALUES(4,X'28b52ffd600f00950500828b241e60b5ce013a3cc4cc6af69c0d8da2e91f54107c19342ed6e963361804815dddcae0f828149f08f755a03e4e273e034f270487e4f8a065efeee4419fa7a4fbebc91876f379eaa493be3a963210a3288a851c4cb162a0529f4801e5a7c6da41686b190a61ad29362004ee514189ca0c93a12e8fdc1740a1c8a8f3f4861998cedda1ae2121a5d9075fc0a382fbe6f2b4591e050a0035950cef1ea56ecec19c052a233ce5fc16ec608ab49f9b95b60a0a');
INSERT INTO reply VALUES(5,X'28b52ffd600e00950500828b241e60b5ce013a3cc4cc6af69c0d8da2e91f54107c4948dd468963361804815dddaae0f828149f96fb2a501fa7139f81a72fc121393e68d9bb3b79d0e729e93ef1640cbbf93c75d2495f11886534c60ca229a221cd600395fa2b05949f5ab10c7634e440d651108ac112b84705252a334c86ba3c725f008522a3ced31b66603a7787ba868494661f7c018f0aee9bcbd36679140a003595327c8f5237c760ce0ad5169c72560b763045dacfcd4a5b0505');
INSERT INTO reply VALUES(6,X'28b52ffd20231901007b226572726f72223a7b22636f6465223a22636f6e74656e745f66696c746572227d7d');
INSERT INTO reply VALUES(7,X'28b52ffd600f009d0500d24b251f7035ce01b9a7450f1236eab54d2536fc16aafa23f02d36ae9d380fa0ea090131a6d5b059071e653b236f5d2b039b81a3a720a10d9d93f0db194d6c7374c478c25541306b73148f78c4a78241a54131a6563298c10c3548283edffe5460fb68b16469aca250ab58845c8314b43f07046ef7d37e9bfc69678075a0b2ccd197569e326f7fcb08759085dd73017f0eedac89db25f91309003595327c8f5237e760ce0ad516f614274c91f673b3d2564101');
CREATE TABLE judgement (
  key          BLOB PRIMARY KEY,      -- SHA-256 of recipe, sample and texts
  recipe       INTEGER NOT NULL REFERENCES recipe (id),
  epoch        INTEGER REFERENCES epoch (id),
  query_id     TEXT NOT NULL,
  document_ids TEXT NOT NULL,         -- JSON array: one, two of a comparison, or a window
  sample       INTEGER NOT NULL,      -- 0, 1, … where a teacher is asked several times
  text         TEXT NOT NULL,         -- digests of the query's and each document's text
  outcome      TEXT NOT NULL CHECK (
    outcome IN ('ok', 'refused', 'filtered', 'truncated', 'unparsable', 'failed')),
  answer       TEXT CHECK ((answer IS NULL) = (outcome <> 'ok')),   -- JSON
  problem      TEXT CHECK ((problem IS NULL) = (outcome = 'ok')),
  reply        INTEGER REFERENCES reply (id),
  request_id   TEXT,
  at           TEXT NOT NULL
) STRICT;
INSERT INTO judgement VALUES(X'7ccfe80e038ad5b8a3718955dcf5d8039c00244b24e9c63043542c2208eb7d2f',1,1,'q0','["d0"]',0,'sha256:4b3c56afd055de28','ok','{"mass":1.0,"probabilities":[0.8,0.2]}',NULL,1,NULL,'2026-11-26T18:39:12Z');
INSERT INTO judgement VALUES(X'8e5505007eae691619d6f18042c1a254d5388114636dff019ce619d458e6016f',1,1,'q0','["d1"]',0,'sha256:b9a99e6ce90cbded','ok','{"mass":1.0,"probabilities":[0.792784,0.207216]}',NULL,2,NULL,'2026-11-26T18:39:12Z');
INSERT INTO judgement VALUES(X'bcdf3c6670aecdffabd84a27403d45e2f74666745c59ad05201625b170a5a5b1',1,NULL,'q0','["d2"]',0,'sha256:ba141625e7646015','unparsable',NULL,'the grades ["0", "1"] have a probability of 0.000 together, expected 0.9 to 1; the likeliest tokens were ["Sure"]',3,NULL,'2026-11-26T18:39:12Z');
INSERT INTO judgement VALUES(X'dc3bb725b1be9c9d989b8bde0b3f3a3b659a8091c6321d42f23e9c8eda277d99',1,1,'q0','["d3"]',0,'sha256:5dfb016781ba8592','ok','{"mass":1.0,"probabilities":[0.778351,0.221649]}',NULL,4,NULL,'2026-11-26T18:39:12Z');
INSERT INTO judgement VALUES(X'aad4fb34a6abbe290a4df5dbab05130b8abb53f0e112235886b4c6746361a873',1,1,'q0','["d4"]',0,'sha256:5936c68797b8e097','ok','{"mass":1.0,"probabilities":[0.771134,0.228866]}',NULL,5,NULL,'2026-11-26T18:39:12Z');
INSERT INTO judgement VALUES(X'397d212d1576f22933d0ce0d9bfd270c9f7fe5e103d7a9db4714abda18e3ae97',1,NULL,'q0','["d5"]',0,'sha256:26f5802947f92fe8','filtered',NULL,'400: {"error":{"code":"content_filter"}}',6,NULL,'2026-11-26T18:39:12Z');
INSERT INTO judgement VALUES(X'f0c896a3cc1efea155a3f4561ac892df5d644b2711d65bf236758c52fd4abd8c',1,1,'q0','["d6"]',0,'sha256:bf4df0c76a256a8f','ok','{"mass":1.0,"probabilities":[0.756701,0.243299]}',NULL,7,NULL,'2026-11-26T18:39:13Z');
CREATE TABLE alias (
  key          BLOB NOT NULL,
  query_id     TEXT NOT NULL,
  document_ids TEXT NOT NULL,         -- JSON array
  PRIMARY KEY (key, query_id, document_ids)
) STRICT, WITHOUT ROWID;
INSERT INTO alias VALUES(X'dc3bb725b1be9c9d989b8bde0b3f3a3b659a8091c6321d42f23e9c8eda277d99','q0','["d7"]');
CREATE TABLE attempt (
  id            INTEGER PRIMARY KEY,
  run           INTEGER NOT NULL REFERENCES run (id),
  at            TEXT NOT NULL,
  endpoint      TEXT NOT NULL,
  status        INTEGER,             -- none where no reply came
  problem       TEXT,
  latency_ms    INTEGER NOT NULL,
  input_tokens  INTEGER NOT NULL,
  cached_tokens INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  micros        INTEGER NOT NULL,    -- millionths of the currency
  estimated     INTEGER NOT NULL     -- 1: the reply did not say, or was lost
) STRICT;
INSERT INTO attempt VALUES(1,1,'2026-11-26T18:39:12Z','http://127.0.0.1:35785/v1/',200,NULL,4,40,0,1,135,0);
INSERT INTO attempt VALUES(2,1,'2026-11-26T18:39:12Z','http://127.0.0.1:35785/v1/',200,NULL,0,40,0,1,135,0);
INSERT INTO attempt VALUES(3,1,'2026-11-26T18:39:12Z','http://127.0.0.1:35785/v1/',200,'the grades ["0", "1"] have a probability of 0.000 together, expected 0.9 to 1; the likeliest tokens were ["Sure"]',0,40,0,1,135,0);
INSERT INTO attempt VALUES(4,1,'2026-11-26T18:39:12Z','http://127.0.0.1:35785/v1/',200,'the grades ["0", "1"] have a probability of 0.000 together, expected 0.9 to 1; the likeliest tokens were ["Sure"]',0,40,0,1,135,0);
INSERT INTO attempt VALUES(5,1,'2026-11-26T18:39:12Z','http://127.0.0.1:35785/v1/',200,NULL,0,40,0,1,135,0);
INSERT INTO attempt VALUES(6,1,'2026-11-26T18:39:12Z','http://127.0.0.1:35785/v1/',200,NULL,0,40,0,1,135,0);
INSERT INTO attempt VALUES(7,1,'2026-11-26T18:39:12Z','http://127.0.0.1:35785/v1/',400,'filtered: 400: {"error":{"code":"content_filter"}}',0,0,0,0,0,0);
INSERT INTO attempt VALUES(8,1,'2026-11-26T18:39:12Z','http://127.0.0.1:35785/v1/',500,'500: {}',0,0,0,0,0,0);
INSERT INTO attempt VALUES(9,1,'2026-11-26T18:39:13Z','http://127.0.0.1:35785/v1/',200,NULL,0,40,0,1,135,0);
INSERT INTO attempt VALUES(10,2,'2026-11-26T18:39:13Z','',NULL,'the run was killed: what it had in flight, at its worst',0,700,0,0,5000,1);
COMMIT;
